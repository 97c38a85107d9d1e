# The command kd-keras on a CPU. From the root of the checkout:
#   docker build -f tools/docker/cpu.Dockerfile -t kd_keras .
#   docker run --rm -v "$PWD:/work" kd_keras run --flagfile=digits
FROM python:3.11-slim
COPY setup.cfg pyproject.toml README.md LICENSE /source/
COPY kd_keras /source/kd_keras
COPY experiments /source/experiments
COPY tools/constraints/linux-py311.txt /source/
RUN pip install --no-cache-dir --constraint /source/linux-py311.txt '/source[all]' && rm -r /source
# Files in /work belong to whoever runs the container with --user.
ENV HOME=/tmp KERAS_HOME=/work/.keras
WORKDIR /work
ENTRYPOINT ["kd-keras"]
