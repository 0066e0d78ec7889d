# Daemons: detached start, ownership check by command line, ready check with a deadline, stop. Sourced by dev/services.
# shellcheck shell=bash disable=SC2154 # the shared names are set in addresses.sh

ready_seconds=60
stop_seconds=20

# A piece of the daemon's command line that no other process has.
marker_of() {
  case $1 in
    postgres) echo "-D $(postgres_data)" ;;
    redis) echo "$services/redis/redis.conf" ;;
    kafka) echo "$services/kafka/server.properties" ;;
    connect) echo "$services/connect/connect.properties" ;;
  esac
}

# The pid file alone proves nothing: the process may be gone and its number in use by something else.
# A process that died but was not reaped yet has an empty command line and counts as gone.
is_alive() {
  local file pid command_line
  file=$(pid_file_of "$1")
  [[ -s $file ]] || return 1
  pid=$(<"$file")
  command_line=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  [[ " $command_line " == *" $(marker_of "$1") "* ]]
}

# launch SERVICE COMMAND...: runs the command in a session of its own with no descriptor of ours, neither the lock
# nor a caller's pipe: whoever waits for the end of a pipe must not wait for a daemon.
launch() {
  local service=$1 log pid_file
  shift
  log=$(log_of "$service")
  pid_file=$(pid_file_of "$service")
  rm -f "$pid_file"
  if [[ -s $log ]]; then mv "$log" "$log.1"; fi
  say "starting $service, log $log"
  # shellcheck disable=SC2016 # expands in the inner shell
  setsid --fork bash -c '
    for descriptor in /proc/self/fd/*; do
      descriptor=${descriptor##*/}
      if ((descriptor > 2)); then eval "exec $descriptor>&-"; fi
    done
    cd /
    echo $$ >"$0.new" && mv "$0.new" "$0"
    exec "$@"
  ' "$pid_file" "$@" </dev/null >"$log" 2>&1
  local deadline=$((SECONDS + 10))
  until [[ -s $pid_file ]] || ((SECONDS > deadline)); do sleep 0.02; done
}

wait_until_ready() {
  local service=$1 deadline=$((SECONDS + ready_seconds))
  while is_alive "$service"; do
    # Alive again after the check: otherwise a stranger on the port may have answered.
    if "ready_$service" && is_alive "$service"; then return; fi
    if ((SECONDS > deadline)); then
      fail_with_log "$service" "$service runs but did not become ready within $ready_seconds s"
    fi
    sleep 0.1
  done
  fail_with_log "$service" "$service ended while starting"
}

fail_with_log() {
  local log
  log=$(log_of "$1")
  say "$2; the last lines of $log:"
  tail -n 20 "$log" >&2 || true
  exit 1
}

stop() {
  local service=$1 pid signal deadline
  if ! is_alive "$service"; then
    rm -f "$(pid_file_of "$service")"
    return
  fi
  pid=$(<"$(pid_file_of "$service")")
  say "stopping $service"
  for signal in $(stop_signals_of "$service"); do
    kill -s "$signal" "$pid" || fail "cannot stop $service (pid $pid): it was started by another user"
    deadline=$((SECONDS + stop_seconds))
    while ((SECONDS < deadline)); do
      if ! is_alive "$service"; then
        rm -f "$(pid_file_of "$service")"
        return
      fi
      sleep 0.05
    done
    say "$service did not end within $stop_seconds s of signal $signal"
  done
  fail "cannot stop $service (pid $pid)"
}

# To PostgreSQL TERM means "once the last client has left", INT is its prompt clean shutdown, and QUIT, unlike KILL,
# ends its children as well.
stop_signals_of() {
  if [[ $1 == postgres ]]; then echo INT QUIT KILL; else echo TERM KILL; fi
}
