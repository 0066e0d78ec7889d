# Installs the programs that the services need and this machine lacks. Sourced by dev/services.
# shellcheck shell=bash disable=SC2154 # the shared names are set in addresses.sh

# The Debian packages of the programs that the services named cannot do without and that are not here.
missing_packages() {
  local service
  for service in "$@"; do
    case $service in
      postgres) postgres_programs >/dev/null || echo postgresql ;;
      redis) command -v redis-server >/dev/null && command -v redis-cli >/dev/null || echo redis-server ;;
      kafka | connect)
        [[ -x $(java_program) ]] || echo default-jre-headless
        jars_are_here "$service" || command -v mvn >/dev/null || echo maven
        ;;
    esac
  done | sort -u
}

# install_missing SERVICE...: as root with apt, otherwise names the line to run.
install_missing() {
  local -a missing wanted
  mapfile -t missing < <(missing_packages "$@")
  wanted=("${missing[@]}")
  # kcat makes the ready check of Kafka quick; without it a slower tool of Kafka's own does it.
  if [[ " $* " == *" kafka "* ]] && ! command -v kcat >/dev/null; then wanted+=(kcat); fi
  # Tests give processes a clock of their own with it.
  if [[ " $* " == *" kafka "* || " $* " == *" connect "* ]] && ! faketime_is_here; then wanted+=(libfaketime); fi

  if ((EUID == 0)) && ((${#wanted[@]})) && command -v apt-get >/dev/null; then
    say "installing ${wanted[*]}"
    apt_install "${wanted[@]}"
    hash -r
    mapfile -t missing < <(missing_packages "$@")
  fi
  if ((${#missing[@]})); then
    fail "this machine lacks programs; run: sudo sh -c 'apt-get update && apt-get install -y ${missing[*]}'"
  fi
  if [[ " $* " == *" kafka "* || " $* " == *" connect "* ]]; then check_java; fi
}

faketime_is_here() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null; }

check_java() {
  local version
  version=$("$(java_program)" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
  ((${version:-0} >= 17)) || fail "$(java_program) is version ${version:-unknown}; Kafka needs 17 or newer (JAVA_HOME decides)"
}

# Only the programs are wanted: Debian's own database cluster and Redis daemon on the default ports are neither
# created, started now, nor started at the next boot. What keeps them from it is taken away again afterwards.
apt_install() (
  policy=/usr/sbin/policy-rc.d
  no_cluster=/etc/postgresql-common/createcluster.d/hashinsight-services.conf
  log=$services/logs/apt.log
  ours=

  # shellcheck disable=SC2317 # called by the trap
  restore() {
    rm -f "$no_cluster"
    rmdir "${no_cluster%/*}" 2>/dev/null || true
    if [[ $ours ]]; then rm -f "$policy"; fi
    if [[ -e $policy.hashinsight-saved ]]; then mv "$policy.hashinsight-saved" "$policy"; fi
  }
  trap restore EXIT
  trap 'exit 130' INT TERM

  if [[ " $* " == *" postgresql "* ]]; then
    mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' >"$no_cluster"
  fi
  # A policy that forbids starts already (usual in a container image) may stay.
  if ! [[ -x $policy ]] || "$policy" redis-server start >/dev/null 2>&1 || (($? != 101)); then
    if [[ -e $policy ]]; then mv "$policy" "$policy.hashinsight-saved"; fi
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi

  export DEBIAN_FRONTEND=noninteractive
  {
    apt-get -o DPkg::Lock::Timeout=300 update &&
      apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
  } </dev/null >"$log" 2>&1 {lock_descriptor}>&- || {
    say "apt-get could not install $*; the last lines of $log:"
    tail -n 20 "$log" >&2
  }
  if [[ " $* " == *" redis-server "* ]]; then
    systemctl disable redis-server >>"$log" 2>&1 || update-rc.d redis-server disable >>"$log" 2>&1 || true
  fi
)
