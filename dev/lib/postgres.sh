# PostgreSQL for development: durable like production, ready for logical replication. Sourced by dev/services.
# shellcheck shell=bash disable=SC2154 # the shared names are set in addresses.sh

# Where the cluster lives: recorded at its first start, because it may have to live outside of the build folder.
postgres_data() {
  if [[ -s $services/postgres/location ]]; then
    cat "$services/postgres/location"
  else
    echo "$services/postgres/data"
  fi
}

# The folder of the server's programs: a version that fits existing data, else the newest.
postgres_programs() {
  local folder version=
  if [[ -n ${HASHINSIGHT_DEV_PG_BIN:-} ]]; then
    echo "$HASHINSIGHT_DEV_PG_BIN"
    return
  fi
  version=$(cat "$(postgres_data)/PG_VERSION" 2>/dev/null || true)
  folder=/usr/lib/postgresql/$version/bin
  if [[ -z $version ]]; then
    folder=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  fi
  if [[ -x $folder/initdb ]]; then
    echo "$folder"
  elif folder=$(command -v initdb); then
    dirname "$(readlink -f "$folder")"
  else
    return 1
  fi
}

# The server refuses to run as root.
as_server_user() {
  if ((EUID == 0)); then
    setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
  else
    "$@"
  fi
}

start_postgres() {
  local programs data
  programs=$(postgres_programs)
  create_cluster "$programs"
  data=$(postgres_data)
  end_orphans "$data"
  local -a command=(
    "$programs/postgres" -D "$data"
    -c "port=$(port_of postgres)" -c listen_addresses=127.0.0.1 -c unix_socket_directories=
    -c wal_level=logical -c max_wal_senders=20 -c max_replication_slots=40
    -c max_prepared_transactions=20 -c track_commit_timestamp=on -c max_connections=400
    -c fsync=on -c synchronous_commit=on
  )
  if ((EUID == 0)); then
    command=("$(command -v setpriv)" --reuid=postgres --regid=postgres --init-groups -- "${command[@]}")
  fi
  launch postgres "${command[@]}"
}

create_cluster() {
  local programs=$1 home=$services/postgres
  if [[ -s $home/location ]]; then return; fi
  mkdir -p "$home"
  chmod 755 "$home"
  if ! as_server_user test -x "$home/."; then
    # The user postgres cannot reach the build folder, as below a /root of mode 0700.
    home=/var/tmp/hashinsight-$(printf '%s' "$services" | sha256sum | cut -c1-12)
    say "the user postgres cannot enter $services: the PostgreSQL data goes to $home"
    mkdir -p "$home"
    chmod 755 "$home"
    [[ -O $home && ! -L $home ]] || fail "$home belongs to somebody else"
  fi
  rm -rf "$home/data" "$home/data.new"
  mkdir -m 700 "$home/data.new"
  if ((EUID == 0)); then chown postgres:postgres "$home/data.new"; fi
  (cd / && as_server_user "$programs/initdb" --pgdata="$home/data.new" --username=hashinsight --auth=trust \
    --encoding=UTF8 --locale=C.UTF-8 --no-instructions) >"$(log_of postgres)" 2>&1 ||
    fail_with_log postgres "initdb failed"
  mv "$home/data.new" "$home/data"
  echo "$home/data" >"$services/postgres/location"
}

# After a crash of the server its children end by themselves, but a new server refuses to start before they have.
end_orphans() {
  local data=$1 entry deadline=$((SECONDS + stop_seconds)) found=yes
  while [[ $found == yes ]]; do
    found=no
    for entry in /proc/[0-9]*/cwd; do
      if [[ $(readlink "$entry" 2>/dev/null) == "$data" ]]; then
        found=yes
        entry=${entry%/cwd}
        kill -s QUIT "${entry#/proc/}" 2>/dev/null || true
      fi
    done
    ((SECONDS < deadline)) || fail "processes of an earlier PostgreSQL still use $data"
    if [[ $found == yes ]]; then sleep 0.1; fi
  done
  # Nobody uses the data, so a lock file is left from a crash. The server would still heed it while its number
  # belongs to a process that died but was not reaped.
  rm -f "$data/postmaster.pid"
}

own_psql() {
  local programs
  programs=$(postgres_programs)
  "$programs/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port_of postgres)" -U hashinsight "$@" </dev/null
}

ready_postgres() {
  local programs
  programs=$(postgres_programs)
  "$programs/pg_isready" -q -t 2 -h 127.0.0.1 -p "$(port_of postgres)" &&
    [[ $(PGCONNECT_TIMEOUT=5 own_psql -d postgres -c 'select 1' 2>/dev/null) == 1 ]]
}

database_exists() { [[ $(own_psql -d postgres -c "select 1 from pg_database where datname = '$1'") == 1 ]]; }

# The second look is for a caller who loses the race against another one.
ensure_database() {
  database_exists "$1" || own_psql -d postgres -c "create database $1" >&2 || database_exists "$1"
}

purge_postgres() {
  local data
  data=$(postgres_data)
  rm -rf "$data" "$data.new" "$services/postgres"
  if [[ $data == /var/tmp/hashinsight-* ]]; then rmdir "${data%/data}" 2>/dev/null || true; fi
}
