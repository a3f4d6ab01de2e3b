# docker build -t pirl . && docker run --rm -v "$PWD:/work" pirl data pack --format image-folder --input photos --output photos
FROM rust:1-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked -p pirl-cli --features jxl,parquet

FROM debian:bookworm-slim
RUN apt-get update -q && apt-get install -qy --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /source/target/release/pirl /usr/local/bin/pirl
WORKDIR /work
ENTRYPOINT ["pirl"]
