# The image: one static program, certificates of authorities, time zones, and a folder that it may
# write to. No shell, no package manager. It needs BuildKit, which docker build is by now.
#
#   docker build --build-arg VERSION=$(git describe --tags --always) -t offpeak .
#   docker run -v offpeak:/data -p 8080:8080 --stop-timeout 45 --read-only --tmpfs /tmp offpeak serve --upstream http://gpu-1:8000/v1
#   docker exec CONTAINER offpeak keys create --name laptop
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd ./cmd
COPY internal ./internal
ARG VERSION=development
# BuildKit knows these two. A default here would count more than what it knows.
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/offpeak ./cmd/offpeak \
    && mkdir -m 0700 /out/data

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/offpeak /usr/local/bin/offpeak
# A volume that is mounted here for the first time takes over whose it is.
COPY --from=build --chown=65532:65532 /out/data /data
# By number, so that who runs it can tell that it is not root.
USER 65532:65532
WORKDIR /data
# Reachable from outside the container, hence only with a key: until the first is created, nobody is
# let in.
ENV OFFPEAK_LISTEN=0.0.0.0:8080 \
    OFFPEAK_API_KEYS_REQUIRED=true \
    OFFPEAK_DATA=/data
EXPOSE 8080
STOPSIGNAL SIGTERM
# Alive, not ready: some orchestrators kill what is unhealthy, and a server whose database is away
# must be left alone.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/offpeak", "health"]
ENTRYPOINT ["/usr/local/bin/offpeak"]
CMD ["serve"]
