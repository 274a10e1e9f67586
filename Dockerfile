# CUDA 13.0, the toolkit that the pinned torch was built with.
#   docker build -t eva_mm .
#   docker run --gpus all --shm-size 16g -v $PWD/data:/eva_mm/data -it eva_mm
FROM nvidia/cuda:13.0.2-devel-ubuntu22.04

ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends software-properties-common gpg-agent \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends \
        build-essential git libgl1 libglib2.0-0 make python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/*

# No GPU is visible while an image is built: the operators' targets are named here.
# Ampere (8.0, 8.6), Ada (8.9), Hopper (9.0), Blackwell (10.0, 12.0).
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0+PTX"
ARG MAX_JOBS=8
ENV CUDA_HOME=/usr/local/cuda FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} \
    PIP_NO_CACHE_DIR=1

WORKDIR /eva_mm
# The stack first: it is built again only when a pin changes, not with every edit of the code.
COPY Makefile setup.py pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY tools/setup_env.py tools/setup_env.py
COPY eva_mm/version.py eva_mm/__init__.py eva_mm/
RUN MAX_JOBS=${MAX_JOBS} make env
COPY . .
ENV PATH=/eva_mm/.venv/bin:${PATH}
CMD ["bash"]
