// The peer of the capture benchmarks: Debezium's embedded engine reading the same MariaDB and publishing to the same Kafka.
//
// Arguments are key=value: host port user password_file kafka topic sink(kafka|noop) mode(backlog|latency) expected tables,
// and any Debezium property as debezium.NAME=VALUE. Prints "READY" once the engine reads, then one JSON line with its figures.
// In mode latency it prints, for every row, its id and the wall clock (µs) at which Kafka acknowledged its record.

import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.JsonByteArray;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Peer {
  private static final AtomicLong FIRST = new AtomicLong();
  private static final AtomicLong COUNT = new AtomicLong();
  private static final AtomicReference<Throwable> FAILED = new AtomicReference<>();

  public static void main(String[] args) throws Exception {
    Map<String, String> a = new HashMap<>();
    Properties p = new Properties();
    p.setProperty("name", "peer");
    p.setProperty("topic.prefix", "peer");
    p.setProperty("connector.class", "io.debezium.connector.mariadb.MariaDbConnector");
    p.setProperty("offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore");
    p.setProperty("offset.flush.interval.ms", "5000");
    p.setProperty("schema.history.internal", "io.debezium.relational.history.MemorySchemaHistory");
    p.setProperty("snapshot.mode", "no_data");
    p.setProperty("include.schema.changes", "false");
    p.setProperty("database.ssl.mode", "disable");
    for (String arg : args) {
      int eq = arg.indexOf('=');
      String key = arg.substring(0, eq);
      String value = arg.substring(eq + 1);
      if (key.startsWith("debezium.")) p.setProperty(key.substring(9), value);
      else a.put(key, value);
    }
    p.setProperty("database.hostname", a.get("host"));
    p.setProperty("database.port", a.get("port"));
    p.setProperty("database.user", a.get("user"));
    p.setProperty("database.password", Files.readString(Path.of(a.get("password_file"))).strip());
    p.setProperty("database.server.id", Long.toString(50_000 + ProcessHandle.current().pid() % 10_000));
    p.setProperty("table.include.list", a.get("tables"));
    long expected = Long.parseLong(a.get("expected"));
    boolean latency = a.get("mode").equals("latency");
    boolean kafka = a.get("sink").equals("kafka");
    String topic = a.get("topic");

    Properties k = new Properties();
    k.setProperty("bootstrap.servers", a.get("kafka"));
    k.setProperty("acks", "all");
    k.setProperty("enable.idempotence", "true");
    k.setProperty("linger.ms", latency ? "0" : "5");
    k.setProperty("batch.size", "900000");
    k.setProperty("max.request.size", "4000000");
    k.setProperty("buffer.memory", "134217728");
    k.setProperty("compression.type", a.getOrDefault("compression", "none"));
    KafkaProducer<byte[], byte[]> producer =
        kafka ? new KafkaProducer<>(k, new ByteArraySerializer(), new ByteArraySerializer()) : null;

    CountDownLatch done = new CountDownLatch(1);
    CountDownLatch ready = new CountDownLatch(1);
    StringBuffer acks = new StringBuffer();
    DebeziumEngine<?> engine =
        DebeziumEngine.create(JsonByteArray.class)
            .using(p)
            .using(
                new DebeziumEngine.ConnectorCallback() {
                  @Override
                  public void taskStarted() {
                    ready.countDown();
                  }
                })
            .using(
                (ok, message, error) -> {
                  if (!ok) FAILED.set(error != null ? error : new IllegalStateException(message));
                  ready.countDown();
                  done.countDown();
                })
            .notifying(
                (List<ChangeEvent<byte[], byte[]>> batch,
                    DebeziumEngine.RecordCommitter<ChangeEvent<byte[], byte[]>> committer) -> {
                  for (ChangeEvent<byte[], byte[]> e : batch) {
                    if (e.value() != null) {
                      FIRST.compareAndSet(0, System.nanoTime());
                      if (producer != null) {
                        String id = latency ? idOf(e.value()) : null;
                        producer.send(
                            new ProducerRecord<>(topic, 0, e.key(), e.value()),
                            (meta, error) -> {
                              if (error != null) FAILED.compareAndSet(null, error);
                              else if (id != null) acks.append(id).append(' ').append(wallMicros()).append('\n');
                            });
                      }
                      if (COUNT.incrementAndGet() == expected) done.countDown();
                    }
                    committer.markProcessed(e);
                  }
                  committer.markBatchFinished();
                })
            .build();
    Thread runner = new Thread(engine, "engine");
    runner.setDaemon(true);
    runner.start();
    ready.await(120, TimeUnit.SECONDS);
    System.out.println("READY");
    System.out.flush();
    boolean all = done.await(Long.parseLong(a.getOrDefault("limit_s", "300")), TimeUnit.SECONDS);
    if (producer != null) producer.flush();
    double seconds = (System.nanoTime() - FIRST.get()) / 1e9;
    if (FAILED.get() != null) {
      FAILED.get().printStackTrace();
      System.exit(1);
    }
    if (latency) System.out.print(acks);
    double cpu =
        ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
                .getProcessCpuTime()
            / 1e9;
    System.out.printf(
        "{\"events\": %d, \"seconds\": %.6f, \"cpu_seconds\": %.3f, \"complete\": %b}%n",
        COUNT.get(), seconds, cpu, all);
    System.exit(all ? 0 : 2);
  }

  private static long wallMicros() {
    Instant now = Instant.now();
    return now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
  }

  /** The value of column id in the after image of a JSON change event. */
  private static String idOf(byte[] json) {
    String text = new String(json, StandardCharsets.UTF_8);
    int payload = text.indexOf("\"payload\":");
    int after = text.indexOf("\"after\":", Math.max(payload, 0));
    int id = text.indexOf("\"id\":", after);
    int end = id + 5;
    while (Character.isDigit(text.charAt(end))) end++;
    return text.substring(id + 5, end);
  }
}
