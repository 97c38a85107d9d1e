import pytest


@pytest.fixture(autouse=True)
def keras_home(tmp_path_factory, monkeypatch):
    """What is kept of a test's images is not kept for the next one, nor among the user's."""
    home = tmp_path_factory.mktemp("keras")
    monkeypatch.setenv("KERAS_HOME", str(home))
    return home
