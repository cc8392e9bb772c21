#!/bin/sh
# Run a class of Kafka's with the heap of KAFKA_HEAP_OPTS (like Kafka's own script: 256 MB unless told otherwise).
exec /opt/java/bin/java ${KAFKA_HEAP_OPTS:--Xmx256m} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
  -XX:SharedArchiveFile=/opt/kafka/tools.jsa -Xlog:disable -Xlog:all=error:stderr \
  "-Dorg.slf4j.simpleLogger.defaultLogLevel=${KAFKA_LOG_LEVEL:-warn}" -cp '/opt/kafka/libs/*' "$@"
