# Names, folders, ports and addresses of the development services. Sourced by dev/services; starts nothing.
# shellcheck shell=bash disable=SC2034 # used by the files that source it

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
library=$repository/dev/lib
target=${CARGO_TARGET_DIR:-$repository/target}
[[ $target == /* ]] || target=$PWD/$target
services=$target/services

all_services=(postgres redis kafka connect)
declare -A variable_of=(
  [postgres]=DATABASE_URL [redis]=REDIS_URL [kafka]=KAFKA_BROKERS [connect]=KAFKA_CONNECT_URL
)
declare -A usual_port_of=([postgres]=5432 [redis]=6379 [kafka]=9092 [connect]=8083)
declare -A default_port_of=(
  [postgres]=15432 [redis]=16379 [kafka]=19092 [kafka-controller]=19093 [connect]=18083
)
declare -A port_variable_of=(
  [postgres]=HASHINSIGHT_DEV_PG_PORT
  [redis]=HASHINSIGHT_DEV_REDIS_PORT
  [kafka]=HASHINSIGHT_DEV_KAFKA_PORT
  [kafka-controller]=HASHINSIGHT_DEV_KAFKA_CONTROLLER_PORT
  [connect]=HASHINSIGHT_DEV_CONNECT_PORT
)

# The caller's client settings (PGHOST, PGOPTIONS ...) must not reach our own clients and servers.
for name in "${!PG@}" REDISCLI_AUTH; do unset "$name"; done
unset name

say() { printf 'services: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

log_of() { echo "$services/logs/$1.log"; }
pid_file_of() { echo "$services/run/$1.pid"; }

# One caller at a time changes anything; the others wait here and then find the work done.
take_lock() {
  if ! mkdir -p "$services"/{logs,run,ports,jars} 2>/dev/null || ! [[ -w $services && -w $services/run ]]; then
    fail "cannot write to $services: it belongs to another user; run as that user or set CARGO_TARGET_DIR"
  fi
  exec {lock_descriptor}>"$services/.lock"
  if ! flock --nonblock "$lock_descriptor"; then
    say "another dev/services is at work here, waiting for it"
    flock --timeout 900 "$lock_descriptor" || fail "gave up waiting for $services/.lock after 15 minutes"
  fi
}

# --- ports ---

# The remembered port of a running or formerly started service, else the one it would ask for.
port_of() {
  local file=$services/ports/$1 wish=${port_variable_of[$1]}
  if [[ -s $file ]]; then cat "$file"; else echo "${!wish:-${default_port_of[$1]}}"; fi
}

tcp_answers() {
  # A connection that is refused or not accepted within two seconds counts as no answer.
  # shellcheck disable=SC2016 # expands in the inner shell
  timeout 2 bash -c ': <"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null
}

# Decides and remembers the port of a service that is about to start.
choose_port() {
  local service=$1 wish=${port_variable_of[$1]} port first
  if [[ -n ${!wish:-} ]]; then
    port=${!wish}
    if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then fail "$wish=$port is not a port"; fi
    if port_is_taken "$service" "$port"; then fail "$wish=$port is taken by another process"; fi
  else
    port=$(port_of "$service")
    first=$port
    while port_is_taken "$service" "$port"; do
      ((port += 1))
      ((port < first + 100)) || fail "no free port for $service from $first on"
    done
    if [[ $port != "$first" ]]; then say "port $first is taken, $service gets $port"; fi
  fi
  echo "$port" >"$services/ports/$service"
}

port_is_taken() {
  local service=$1 port=$2 other
  for other in "${!default_port_of[@]}"; do
    if [[ $other != "$service" && $(port_of "$other") == "$port" ]]; then return 0; fi
  done
  tcp_answers 127.0.0.1 "$port"
}

url_of() {
  local port
  port=$(port_of "$1")
  case $1 in
    postgres) echo "postgres://hashinsight@127.0.0.1:$port/hashinsight" ;;
    redis) echo "redis://127.0.0.1:$port" ;;
    kafka) echo "127.0.0.1:$port" ;;
    connect) echo "http://127.0.0.1:$port" ;;
  esac
}

# --- servers of the user ---

# "host port" lines of the user's variable; nothing when it names no TCP address (a socket folder).
external_addresses() {
  local name=${variable_of[$1]} list part host port
  list=${!name:-}
  list=${list#*://}
  list=${list%%[/?]*}
  list=${list##*@}
  local -a parts
  IFS=, read -r -a parts <<<"$list"
  for part in "${parts[@]}"; do
    part=${part##*://}
    port=${usual_port_of[$1]}
    if [[ $part =~ ^(\[.*\]|[^:]*):([0-9]+)$ ]]; then
      host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
    else
      host=$part
    fi
    host=${host#[} host=${host%]}
    if [[ -n $host ]]; then echo "$host $port"; fi
  done
}

# True when the user's variable is set and names another server than the one of this folder. Our own address in it
# (after `eval "$(dev/services env)"`, or with another database name) does not make the service external.
is_external() {
  local name=${variable_of[$1]} own
  [[ -n ${!name:-} ]] || return 1
  own=$(port_of "$1")
  case $(external_addresses "$1") in
    "127.0.0.1 $own" | "localhost $own") return 1 ;;
  esac
}

external_answers() {
  local host port addresses
  addresses=$(external_addresses "$1")
  [[ -n $addresses ]] || return 0 # a local socket: the first connection will tell
  while read -r host port; do
    if tcp_answers "$host" "$port"; then return 0; fi
  done <<<"$addresses"
  return 1
}

check_external() {
  local name=${variable_of[$1]} addresses
  addresses=$(external_addresses "$1" | tr ' \n' ': ')
  external_answers "$1" ||
    fail "$name names ${addresses% }, which does not answer: start it, or unset $name to get a $1 of our own"
}
