"""Prints what makes a shell complete commands, flags and names: eval "$(kd-keras completion bash)"."""

import shlex

from kd_keras import flagfiles, signatures, spec
from kd_keras.errors import InputError

_SHELLS = ("bash", "zsh")
_FUNCTION = """\
_kd_keras() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flag= words= files=
  # Readline makes words of their own of = and what is on either side.
  if [[ $word == = ]]; then flag=$before word=
  elif [[ $before == = ]]; then flag=${COMP_WORDS[COMP_CWORD-2]}; fi
  if (( COMP_CWORD == 1 )); then words=COMMANDS
  elif [[ -n $flag ]]; then
    case $flag in
VALUES
      *) files=1;;
    esac
  elif [[ $word == -* ]]; then
    case ${COMP_WORDS[1]} in
      sweep) words=SWEEP_FLAGS;;
      *) words=RUN_FLAGS;;
    esac
  else
    case ${COMP_WORDS[1]} in
      describe) words=PARTS;;
      list) words=KINDS;;
      completion) words=SHELLS;;
      *) files=1;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ -n $files ]]; then COMPREPLY+=($(compgen -f -- "$word")); fi
  if [[ ${COMPREPLY[0]} == *[=\\(] ]]; then compopt -o nospace; fi
}
complete -o filenames -F _kd_keras kd-keras
"""


def main(argv: list[str]) -> int:
    """Prints the script of a shell.

    Args:
        argv: ``bash`` or ``zsh``.

    Raises:
        InputError: another shell.
    """
    if len(argv) != 1 or argv[0] not in _SHELLS:
        raise InputError(spec.unknown(" ".join(argv), "shells", list(_SHELLS)))
    if argv[0] == "zsh":
        print("autoload -Uz compinit bashcompinit && compinit && bashcompinit")
    print(_script(), end="")
    return 0


def _script() -> str:
    from kd_keras.run import commands
    from kd_keras.run.config import Config
    from kd_keras.run.settings import declared
    from kd_keras.sweep.__main__ import FLAGS

    settings = declared(Config)
    values = {flag: setting.kind.beginnings() for flag, setting in settings.items()}
    of_sweep = {name: getattr(FLAGS[name].parser, "enum_values", []) for name in FLAGS}
    cases = [f"      --{flag}) words={_quoted(words)};;" for flag, words in {**values, **of_sweep}.items() if words]
    cases.append(f"      --flagfile) words={_quoted(flagfiles.names())} files=1;;")
    flags = ["--flagfile=", "--help"]
    for flag, setting in settings.items():
        flags += [f"--{flag}", f"--no{flag}"] if setting.kind.is_switch else [f"--{flag}="]
    texts = {
        "COMMANDS": commands.names(),
        "RUN_FLAGS": flags,
        "SWEEP_FLAGS": [*flags, *(f"--{name}=" for name in of_sweep)],
        "PARTS": [name for kind in signatures.KINDS for name in signatures.names(kind)],
        "KINDS": [*signatures.KINDS, "experiments"],
        "SHELLS": _SHELLS,
    }
    script = _FUNCTION.replace("VALUES", "\n".join(cases))
    for name, words in texts.items():
        script = script.replace(f"={name}", f"={_quoted(words)}")
    return script


def _quoted(words) -> str:
    return shlex.quote(" ".join(words))
