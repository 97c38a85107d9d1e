# The command kd-keras on NVIDIA GPUs; the machine needs NVIDIA's driver and container toolkit. From the root of the checkout:
#   docker build -f tools/docker/gpu.Dockerfile -t kd_keras:gpu .
#   docker run --rm --gpus all -v "$PWD:/work" kd_keras:gpu run --flagfile=cifar_resnet
FROM python:3.11-slim
COPY setup.cfg pyproject.toml README.md LICENSE /source/
COPY kd_keras /source/kd_keras
COPY experiments /source/experiments
COPY tools/constraints/linux-py311.txt /source/
# CUDA and cuDNN come as packages of TensorFlow's.
RUN pip install --no-cache-dir --constraint /source/linux-py311.txt '/source[all]' 'tensorflow[and-cuda]' && rm -r /source
ENV HOME=/tmp KERAS_HOME=/work/.keras
WORKDIR /work
ENTRYPOINT ["kd-keras"]
