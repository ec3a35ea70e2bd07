# One image for every process; docker-compose.yaml says which one a container runs.
FROM python:3.13-slim

RUN useradd --create-home roster && install -d -o roster /data /cache
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements.txt
COPY pyproject.toml ./
COPY schemas schemas
COPY streams streams
COPY processors processors
COPY projections projections
COPY tools tools
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

USER roster
ENV ROSTER_DATA=/data ROSTER_CACHE=/cache ROSTER_BIND=0.0.0.0 PYTHONUNBUFFERED=1
# Jars and class data become part of the image: containers start without a network.
RUN roster jars
# Away from /app: the installed packages are used, not the copy.
WORKDIR /data
VOLUME /data
ENTRYPOINT ["roster"]
