# Kafka (one KRaft node) and Kafka Connect with Debezium, straight from their jars. Sourced by dev/services.
# shellcheck shell=bash disable=SC2154 # the shared names are set in addresses.sh

java_program() {
  if [[ -n ${JAVA_HOME:-} ]]; then echo "$JAVA_HOME/bin/java"; else command -v java; fi
}

# --- jars ---

# The name carries a checksum of the pom: other versions are another folder, never a mixed class path.
jar_folder() { echo "$services/jars/$1-$(sha256sum <"$library/$1.pom.xml" | cut -c1-12)"; }

jars_are_here() {
  [[ -d $(jar_folder kafka) ]] || return 1
  if [[ $1 == connect ]]; then [[ -d $(jar_folder debezium) ]]; fi
}

# Maven copies into a temporary folder that gets its name when it is complete: an interrupted download leaves nothing.
fetch_jars() {
  local name=$1 folder temporary
  folder=$(jar_folder "$name")
  if [[ -d $folder ]]; then return; fi
  say "fetching the jars of $name from Maven Central (once)"
  rm -rf "$services"/jars/.new-*
  temporary=$(mktemp -d "$services/jars/.new-XXXXXX")
  cp "$library/$name.pom.xml" "$temporary/pom.xml"
  mvn -B -ntp -f "$temporary/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$temporary/$name" </dev/null >"$services/logs/maven.log" 2>&1 || {
    say "Maven could not fetch the jars of $name; the last lines of $services/logs/maven.log:"
    tail -n 20 "$services/logs/maven.log" >&2
    exit 1
  }
  mkdir "$temporary/complete"
  mv "$temporary/$name" "$temporary/complete/"
  mv -T "$temporary/complete" "$folder"
  rm -rf "$temporary"
}

run_java() { "$(java_program)" -cp "$(jar_folder kafka)/kafka/*" "$@"; }

# --- broker ---

start_kafka() {
  local home=$services/kafka port controller id
  port=$(port_of kafka) controller=$(port_of kafka-controller)
  fetch_jars kafka
  mkdir -p "$home"
  cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$home/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
EOF
  if [[ ! -s $home/data/meta.properties ]]; then
    # A cluster id is 16 random bytes in URL-safe base64; a leading dash would read as an option.
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | tr -d '=')
    run_java kafka.tools.StorageTool format --ignore-formatted -t "$id" -c "$home/server.properties" \
      </dev/null >"$(log_of kafka)" 2>&1 || fail_with_log kafka "formatting the Kafka storage failed"
  fi
  launch_java kafka -Xmx512m kafka.Kafka "$home/server.properties"
}

# launch_java SERVICE HEAP MAIN-CLASS FILE...
launch_java() {
  local service=$1 heap=$2
  shift 2
  launch "$service" "$(java_program)" "$heap" -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
    "-Dlog4j2.configurationFile=$library/log4j2.properties" -cp "$(jar_folder kafka)/kafka/*" "$@"
}

# A real metadata request. Without kcat the tool of Kafka asks, a JVM start: only once the port answers.
ready_kafka() {
  local address
  address=127.0.0.1:$(port_of kafka)
  if command -v kcat >/dev/null; then
    [[ $(kcat -L -b "$address" -m 5 </dev/null 2>/dev/null) == *"broker 1 at $address"* ]]
  else
    tcp_answers 127.0.0.1 "$(port_of kafka)" &&
      run_java org.apache.kafka.tools.TopicCommand --bootstrap-server "$address" --list </dev/null >/dev/null 2>&1
  fi
}

purge_kafka() { rm -rf "$services/kafka"; }

# --- Connect ---

start_connect() {
  local home=$services/connect brokers=${KAFKA_BROKERS:-}
  if ! is_external kafka; then brokers=$(url_of kafka); fi
  fetch_jars kafka
  fetch_jars debezium
  mkdir -p "$home"
  cat >"$home/connect.properties" <<EOF
bootstrap.servers=$brokers
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
offset.storage.file.filename=$home/offsets
offset.flush.interval.ms=1000
plugin.path=$(jar_folder debezium)
plugin.discovery=service_load
listeners=http://127.0.0.1:$(port_of connect)
EOF
  launch_java connect -Xmx1g org.apache.kafka.connect.cli.ConnectStandalone "$home/connect.properties"
}

ready_connect() {
  local port
  port=$(port_of connect)
  # shellcheck disable=SC2016 # expands in the inner shell
  timeout 5 bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$0"
    printf "GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n" >&3
    head -n 1 <&3
  ' "$port" 2>/dev/null | grep -q '^HTTP/1.[01] 200'
}

purge_connect() { rm -rf "$services/connect"; }
