#!/bin/bash
# Builds the image for real and runs it the way Kubernetes does: `make image-check`. Needs root, Debian, and the
# packages buildah, crun, netavark and debootstrap; takes some minutes and 15 GB below $WORK.
#
#   deploy/tools/try_image.sh [OPTION…]     options of `buildah build`, such as --volume /etc/pip.conf:/etc/pip.conf:ro
#
# No image registry is asked: a small Debian with Python stands in for the base image. Then two containers share a
# network, processes, Ray's session folder and the state, but no other files, as in the chart's head pod: Ray in one,
# the controller's supervisor in the other. Their root file systems are read-only, their user is 10001.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
WORK=${WORK:-/var/tmp/hdet-image}
BASE=localhost/hdet-stand-in:bookworm
IMAGE=localhost/hdet-ray:check
PORT=8470
READY_TIMEOUT_S=${READY_TIMEOUT_S:-180}
JOB_TIMEOUT_S=${JOB_TIMEOUT_S:-300}

main() {
  mkdir -p "$WORK"
  # REUSE_IMAGE=1: try once more what the last run has built.
  [[ -n "${REUSE_IMAGE:-}" ]] || build "$@"
  container=$(buildah from --pull-never "$IMAGE")
  ROOTFS=$(buildah mount "$container")
  export WORK ROOTFS PORT READY_TIMEOUT_S JOB_TIMEOUT_S
  trap 'buildah rm "$container" >/dev/null' EXIT
  check_image
  step "running it"
  rm -rf "$WORK/run" && mkdir -p "$WORK/run"
  # A network of its own: the machine's ports and other Rays on it stay out of this.
  unshare --net --mount --pid --fork --mount-proc --kill-child bash "$0" inside
}

build() {
  buildah inspect --type image "$BASE" >/dev/null 2>&1 || make_base
  step "building $IMAGE"
  buildah build --pull-never --format docker --file deploy/Dockerfile --tag "$IMAGE" \
    --build-arg PYTHON_IMAGE="$BASE" --build-arg TORCH_CPU_INDEX= --volume /etc/resolv.conf:/etc/resolv.conf:ro "$@" .
}

make_base() {
  step "making the stand-in base"
  rm -rf "$WORK/base"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$WORK/base" \
    >"$WORK/debootstrap.log"
  local empty
  empty=$(buildah from scratch)
  buildah add --quiet "$empty" "$WORK/base" / >/dev/null
  buildah commit --quiet "$empty" "$BASE" >/dev/null
  buildah rm "$empty" >/dev/null
  rm -rf "$WORK/base"
}

check_image() {
  step "looking at it"
  local about
  about=$(buildah inspect --type image "$IMAGE")
  python3 - "$about" <<'PYTHON'
import json, sys
config = json.loads(sys.argv[1])["Docker"]["config"]
labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
assert config["User"] == "10001:10001", config["User"]
assert config["Healthcheck"]["Test"][0] == "CMD", config["Healthcheck"]
assert {"title", "description", "version", "revision", "licenses"} <= set(labels), labels
print("user, health check and labels:", config["User"], config["Healthcheck"]["Test"][1], labels["title"], labels["version"])
PYTHON
  for tool in cc gcc g++ clang ld make; do
    if chroot "$ROOTFS" /bin/bash -c "command -v $tool" >/dev/null; then echo "the image holds $tool" >&2; exit 1; fi
  done
  echo "no compiler; $(du -sh --exclude=proc "$ROOTFS" | cut -f1)"
}

# In namespaces of our own; ends with all that was started here.
inside() {
  ip link set lo up
  # Ray wants an address that is not loopback, as a pod has one.
  ip address add 10.88.0.2/24 dev lo
  ip route add default dev lo src 10.88.0.2
  mkdir -p "$WORK"/run/{state,session,checkpoints,shm}
  chown 10001:10001 "$WORK"/run/{state,session,checkpoints}
  chmod 0700 "$WORK/run/state"
  # A name for this machine, as a pod has one, and nobody to ask for others: each question would wait for its timeout.
  printf '127.0.0.1 localhost\n10.88.0.2 %s\n' "$(hostname)" >"$WORK/run/hosts"
  : >"$WORK/run/resolv.conf"
  python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$WORK/run/ray_token"
  # Given ports, since Ray waits for those that its agents choose themselves for 15 s only.
  restarted head ray start --head --block --port=6379 --dashboard-host=0.0.0.0 --num-cpus=4 --metrics-export-port=8080 \
    --dashboard-agent-listen-port=52365 --dashboard-agent-grpc-port=52366 --runtime-env-agent-port=52367 &
  restarted supervisor hdet-beside-ray 127.0.0.1:6379 &
  wait_until_ready || { tail -n 50 "$WORK/run/head.log" "$WORK/run/supervisor.log" >&2; exit 1; }
  echo "ready after ${SECONDS} s: $(curl --silent --fail http://127.0.0.1:$PORT/readyz)"
  echo "without a token: $(curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:$PORT/v1/jobs)"
  # As KubeRay's probes ask, which send no token of Ray's.
  echo "Ray's health: $(curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:52365/api/healthz)"
  if grep -rq "$(cat "$WORK/run/state/token")" "$WORK/run/supervisor.log"; then echo "the token was printed" >&2; exit 1; fi
  contained client hdet submit --name tiny --entrypoint byte_lm --replicas 2 --set preset=tiny --set total_steps=60
  contained client timeout "$JOB_TIMEOUT_S" hdet watch tiny || true
  local told
  told=$(contained client hdet jobs show tiny --json)
  python3 -c 'import json, sys; job = json.loads(sys.argv[1]); print(job["state"], job["reason"], job["progress"]); sys.exit(job["state"] != "SUCCEEDED")' "$told"
  step "the image answers /readyz and runs a job"
}

# As the kubelet restarts a container that ends.
restarted() {
  until contained "$@" >>"$WORK/run/$1.log" 2>&1; do echo "$1 ended and is started again" | tee -a "$WORK/run/$1.log"; done
}

# One container: its own mounts, a read-only root, and what a pod would mount.
contained() {
  local name=$1
  shift
  mkdir -p "$WORK/run/$name"/{tmp,home}
  chown 10001:10001 "$WORK/run/$name"/{tmp,home}
  NAME=$name unshare --mount --fork --kill-child bash "$0" contained "$@"
}

as_contained() {
  touch "$ROOTFS"/etc/{hosts,resolv.conf}
  mount --bind "$ROOTFS" "$ROOTFS"
  mount -o remount,bind,ro "$ROOTFS"
  mount -t proc proc "$ROOTFS/proc"
  mount --rbind /dev "$ROOTFS/dev"
  mount -t tmpfs shm "$ROOTFS/dev/shm"
  mount --bind "$WORK/run/$NAME/tmp" "$ROOTFS/tmp"
  mkdir -p "$ROOTFS/tmp/ray"
  mount --bind "$WORK/run/session" "$ROOTFS/tmp/ray"
  mount --bind "$WORK/run/$NAME/home" "$ROOTFS/home/hdet"
  mount --bind "$WORK/run/hosts" "$ROOTFS/etc/hosts"
  mount --bind "$WORK/run/resolv.conf" "$ROOTFS/etc/resolv.conf"
  mount --bind "$WORK/run/state" "$ROOTFS/var/lib/hdet"
  mount --bind "$WORK/run/checkpoints" "$ROOTFS/checkpoints"
  exec chroot --userspec=10001:10001 "$ROOTFS" \
    /usr/bin/env -i PATH=/opt/hdet/bin:/usr/local/bin:/usr/bin:/bin HOME=/home/hdet USER=hdet PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 TERM=dumb \
    HDET_HOME=/var/lib/hdet HDET_HOST=0.0.0.0 HDET_PORT="$PORT" HDET_INSECURE_I_KNOW=true HDET_STORAGE=/checkpoints/runs \
    RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$(cat "$WORK/run/ray_token")" \
    RAY_agent_register_timeout_ms=300000 RAY_DASHBOARD_STARTUP_TIMEOUT_S=300 "$@" # a busy machine is no failure
}

wait_until_ready() {
  until curl --silent --fail --output /dev/null http://127.0.0.1:$PORT/readyz; do
    ((SECONDS < READY_TIMEOUT_S)) || return 1
    sleep 1
  done
}

step() { printf '== %s\n' "$*"; }

case "${1:-}" in
  inside) inside ;;
  contained) shift && as_contained "$@" ;;
  *) main "$@" ;;
esac
