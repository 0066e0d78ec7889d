# Redis for development. Sourced by dev/services.
# shellcheck shell=bash disable=SC2154 # the shared names are set in addresses.sh

start_redis() {
  local home=$services/redis
  mkdir -p "$home/data"
  # The process title stays the command line: it is how the process is recognised as ours.
  cat >"$home/redis.conf" <<EOF
bind 127.0.0.1
port $(port_of redis)
daemonize no
dir "$home/data"
save 3600 1
appendonly no
set-proc-title no
EOF
  launch redis "$(command -v redis-server)" "$home/redis.conf"
}

ready_redis() {
  [[ $(timeout 5 redis-cli -h 127.0.0.1 -p "$(port_of redis)" PING 2>/dev/null) == PONG ]]
}

purge_redis() { rm -rf "$services/redis"; }
