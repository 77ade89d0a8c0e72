import com.openai.core.JsonMissing;
import com.openai.core.JsonValue;
import com.openai.core.MultipartField;
import com.openai.models.batches.Batch;
import com.openai.models.batches.BatchCreateParams;
import com.openai.models.batches.BatchListParams;
import com.openai.models.files.FileCreateParams;
import com.openai.models.files.FileListParams;
import com.openai.models.files.FileObject;
import com.openai.models.files.FilePurpose;
import com.openai.models.uploads.Upload;
import com.openai.models.uploads.UploadCompleteParams;
import com.openai.models.uploads.UploadCreateParams;
import com.openai.models.uploads.parts.PartCreateParams;
import com.openai.models.uploads.parts.UploadPart;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.PipedInputStream;
import java.io.PipedOutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.stream.IntStream;

/** OpenAI's Java SDK against Offpeak. ../checks.tsv says what each id stands for. */
class Checks extends Harness {
    public static void main(String[] args) throws Exception {
        uploads();
        files();
        batches();
        cancelling();
        models();
        errors();
        clients();
        parts();
        System.exit(0); // the SDK's threads would keep us for a while
    }

    // Uploads

    static Path samplePath() throws Exception {
        return Files.write(Path.of(env("SCRATCH"), "sample.jsonl"), SAMPLE);
    }

    static void uploaded(FileCreateParams.Builder params, String name, byte[] want) throws Exception {
        var f = ai.files().create(params.build());
        equal(f.filename() + " " + f.bytes(), name + " " + want.length);
        is(Arrays.equals(content(f.id()), want), "other bytes came back");
    }

    static FileCreateParams.ExpiresAfter expiresAfter(long seconds) {
        return FileCreateParams.ExpiresAfter.builder().seconds(seconds).build();
    }

    static Long lifetime(FileObject f) {
        return f.expiresAt().map(at -> at - f.createdAt()).orElse(null);
    }

    static void uploads() {
        check("upload-path", () -> uploaded(uploading(SAMPLE).file(samplePath()), "sample.jsonl", SAMPLE));

        check("upload-stream", () -> {
            try (var stream = Files.newInputStream(samplePath())) {
                uploaded(uploading(SAMPLE).file(file(stream, "sample.jsonl")), "sample.jsonl", SAMPLE);
            }
        });

        check("upload-bytes", () -> uploaded(uploading(SAMPLE).file(file(SAMPLE, "été 1.jsonl")), "été 1.jsonl", SAMPLE));

        check("upload-typed", () -> {
            for (var type : List.of("application/jsonl", "text/plain")) {
                var file = MultipartField.<InputStream>builder().value(new ByteArrayInputStream(SAMPLE))
                    .filename("in.jsonl").contentType(type).build();
                uploaded(uploading(SAMPLE).file(file), "in.jsonl", SAMPLE);
            }
        });

        check("upload-pipe", () -> {
            var out = new PipedOutputStream();
            var in = new PipedInputStream(out);
            new Thread(() -> {
                try (out) {
                    out.write(SAMPLE);
                } catch (Exception e) {
                    throw new RuntimeException(e);
                }
            }).start();
            uploaded(uploading(SAMPLE).file(file(in, "in.jsonl")), "in.jsonl", SAMPLE);
        });

        check("upload-unnamed", () -> {
            var unnamed = FileCreateParams.builder().file(SAMPLE);
            uploaded(unnamed.purpose(FilePurpose.USER_DATA), "", SAMPLE); // the SDK sends no name at all
            new Refusal(400, "Must be .jsonl").of(() -> ai.files().create(unnamed.purpose(FilePurpose.BATCH).build()));
        });

        check("upload-large", () -> {
            var large = new byte[8 << 20];
            new Random().nextBytes(large);
            uploaded(uploading(large).file(file(large, "large.bin")).purpose(FilePurpose.USER_DATA), "large.bin", large);
        });

        check("upload-expiry", () -> {
            equal(lifetime(ai.files().create(uploading(SAMPLE).expiresAfter(expiresAfter(3600)).build())), 3600L);
            equal(lifetime(ai.files().create(
                uploading(SAMPLE).purpose(FilePurpose.USER_DATA).expiresAfter(expiresAfter(2592000)).build())), 2592000L);
            equal(lifetime(ai.files().create(uploading(SAMPLE).build())), 30 * 86400L);
            equal(lifetime(ai.files().create(uploading(SAMPLE).purpose(FilePurpose.USER_DATA).build())), null);
        });

        check("upload-format", () -> {
            var no = new Refusal(400, "Invalid file format for Batch API. Must be .jsonl");
            no.of(() -> ai.files().create(uploading(SAMPLE).file(file(SAMPLE, "in.json")).build()));
            no.of(() -> ai.files().create(uploading(new byte[0]).build()));
            no.of(() -> ai.files().create(uploading(bytes("not JSON\n")).build()));
        });

        check("upload-parameters", () -> {
            new Refusal(400, "Invalid value: 'nonsense'", "invalid_value", "purpose").of(() ->
                ai.files().create(uploading(SAMPLE).purpose(FilePurpose.of("nonsense")).build()));
            new Refusal(400, "integer below minimum value", "integer_below_min_value", "expires_after.seconds").of(() ->
                ai.files().create(uploading(SAMPLE).expiresAfter(expiresAfter(3599)).build()));
            new Refusal(400, "integer above maximum value", "integer_above_max_value", "expires_after.seconds").of(() ->
                ai.files().create(uploading(SAMPLE).expiresAfter(expiresAfter(2592001)).build()));
            var now = FileCreateParams.ExpiresAfter.builder().seconds(3600).anchor(JsonValue.from("now")).build();
            new Refusal(400, "Invalid value: 'now'", "invalid_value", "expires_after.anchor").of(() ->
                ai.files().create(uploading(SAMPLE).expiresAfter(now).build()));
        });
    }

    // Files

    /** Every call that names the file finds nothing. */
    static void unknownFile(String id) throws Exception {
        var no = new Refusal(404, "No such File object: ", null, "id");
        no.of(() -> ai.files().retrieve(id));
        no.of(() -> ai.files().content(id));
        no.of(() -> ai.files().delete(id));
    }

    static List<String> fileIds() {
        return ai.files().list().autoPager().stream().map(FileObject::id).toList();
    }

    /** The names of all inputs of the project with many. */
    static List<String> names(FileListParams.Order order) {
        var query = FileListParams.builder().purpose("batch").limit(50).order(Optional.ofNullable(order));
        return pages.files().list(query.build()).autoPager().stream().map(FileObject::filename).toList();
    }

    static void files() {
        check("file-object", () -> {
            var f = ai.files().create(uploading(SAMPLE).purpose(FilePurpose.USER_DATA).build());
            matches(f.id(), "file-[0-9A-Za-z]{22}");
            equal(f.status() + " " + f.purpose(), "processed user_data");
            equal(nulls(f._allProperties()), "expires_at status_details");
            equal(f._additionalProperties(), Map.of());
            is(Math.abs(f.createdAt() - Instant.now().getEpochSecond()) < 60, "created at " + f.createdAt());
            equal(ai.files().retrieve(f.id()), f);
            equal(ai.files().list(FileListParams.builder().limit(1).build()).data(), List.of(f));
        });

        check("file-content", () -> {
            try (var r = ai.files().content(upload(ai, line("a")))) {
                equal(r.headers().values("Content-Type"), List.of("application/octet-stream"));
                is(r.headers().values("Content-Disposition").get(0).contains("in.jsonl"), "no name");
                equal(r.headers().values("Content-Length"), List.of("" + r.body().readAllBytes().length));
            }
        });

        check("file-delete", () -> {
            var id = upload(ai, line("a"));
            var d = ai.files().delete(id);
            equal(d.id() + " " + d.deleted() + " " + d._object_(), id + " true file");
            unknownFile(id);
        });

        check("file-wait", () -> { throw new Lacks("the SDK has no helper for it"); });

        check("file-expired", () -> {
            unknownFile(env("EXPIRED_FILE"));
            is(!fileIds().contains(env("EXPIRED_FILE")), "it is listed");
        });

        check("file-pages", () -> {
            var names = IntStream.range(0, 120).mapToObj(n -> "%03d.jsonl".formatted(n)).toList();
            equal(names(FileListParams.Order.ASC), names);
            equal(names(FileListParams.Order.DESC), reversed(names));
            equal(names(null), reversed(names));
        });

        check("file-filter", () -> {
            // The SDK's types have no page without a first_id, and an empty one has none (contract L-06).
            var lenient = client().apiKey(env("PAGES_KEY")).responseValidation(false).build();
            for (var purpose : List.of("batch", "batch_output", "evals")) {
                var found = lenient.files().list(FileListParams.builder().purpose(purpose).build()).autoPager().stream().toList();
                equal(found.isEmpty(), purpose.equals("evals"));
                for (var f : found) equal(f.purpose().asString(), purpose);
            }
            new Refusal(400, "Invalid value: 'up'", "invalid_value", "order").of(() ->
                ai.files().list(FileListParams.builder().order(FileListParams.Order.of("up")).build()));
            new Refusal(404, "No such File object: file-nope", null, "id").of(() ->
                ai.files().list(FileListParams.builder().after("file-nope").build()));
        });
    }

    static <T> List<T> reversed(List<T> list) {
        var copy = new ArrayList<>(list);
        Collections.reverse(copy);
        return copy;
    }

    // Batches

    static final Object[] LINES = IntStream.rangeClosed(0, 20)
        .mapToObj(n -> n < 20 ? line("ticket-" + n, "question " + n) : line("été/\"1\"", "naïve 🙂")).toArray();

    private static Batch completed;

    static Batch completed() throws Exception {
        if (completed == null) completed = finish(create(LINES));
        return completed;
    }

    static BatchCreateParams.OutputExpiresAfter outputExpiresAfter(long seconds) {
        return BatchCreateParams.OutputExpiresAfter.builder().seconds(seconds).build();
    }

    static String ids(String fileId) throws Exception {
        return String.join(" ", results(fileId).keySet());
    }

    static List<String> numbers(List<Batch> batches) {
        return batches.stream().map(b -> b.metadata().get()._additionalProperties().get("n").asStringOrThrow()).toList();
    }

    static boolean ordered(Long... times) {
        return Arrays.stream(times).sorted().toList().equals(List.of(times));
    }

    static void batches() {
        check("batch-create", () -> {
            var metadata = Map.of("k", "v", "clé", "été", "k".repeat(64), "v".repeat(512));
            var m = BatchCreateParams.Metadata.builder();
            metadata.forEach(m::putProperty);
            var b = ai.batches().create(batchOf(upload(ai, line("a"))).metadata(m.build())
                .outputExpiresAfter(outputExpiresAfter(3600)).build());
            matches(b.id(), "batch_[0-9a-f]{32}");
            equal(b._object_() + " " + b.endpoint() + " " + b.completionWindow(), "batch /v1/chat/completions 24h");
            equal(state(b), "validating 0+0 of 0");
            var echoed = new TreeMap<String, String>();
            b.metadata().get()._additionalProperties().forEach((k, v) -> echoed.put(k, v.asStringOrThrow()));
            equal(echoed, metadata);
            is(Math.abs(b.createdAt() - Instant.now().getEpochSecond()) < 60, "created at " + b.createdAt());
            equal(b.expiresAt().get() - b.createdAt(), 86400L);
            var unset = "cancelled_at cancelling_at completed_at error_file_id errors expired_at failed_at finalizing_at in_progress_at";
            equal(nulls(b), unset + " model output_file_id usage");
            equal(nulls(create(line("a"))), unset + " metadata model output_file_id usage");
        });

        check("batch-read-your-writes", () -> {
            for (int n = 0; n < 5; n++) {
                var b = create(line("a"));
                equal(ai.batches().retrieve(b.id()).id(), b.id());
                equal(ai.batches().list(BatchListParams.builder().limit(1).build()).data().get(0).id(), b.id());
            }
        });

        check("batch-complete", () -> {
            var b = completed();
            equal(state(b) + " " + b.model().get(), "completed 21+0 of 21 " + CHAT);
            is(ordered(b.createdAt(), b.inProgressAt().get(), b.finalizingAt().get(), b.completedAt().get()), "not in order: " + b);
            equal(nulls(b), "cancelled_at cancelling_at error_file_id errors expired_at failed_at metadata");
            equal(ai.batches().retrieve(b.id()), b);
        });

        check("batch-results", () -> {
            var got = results(completed().outputFileId().get());
            equal(got.size(), LINES.length);
            for (var o : LINES) {
                @SuppressWarnings("unchecked") var l = (Map<String, Object>) o;
                var r = got.get(l.get("custom_id"));
                is(r.get("error").isNull(), "got " + r);
                equal(r.at("/response/status_code").asInt(), 200);
                equal(r.at("/response/body"), answer(l));
                is(r.at("/response/request_id").isTextual(), "no request_id");
            }
        });

        check("batch-usage", () -> {
            long input = 0, output = 0, total = 0;
            for (var r : results(completed().outputFileId().get()).values()) {
                var u = r.at("/response/body/usage");
                input += u.get("prompt_tokens").asLong();
                output += u.get("completion_tokens").asLong();
                total += u.get("total_tokens").asLong();
            }
            var u = completed().usage().get();
            is(output > 0, "no tokens");
            equal(List.of(u.inputTokens(), u.outputTokens(), u.totalTokens()), List.of(input, output, total));
            equal(u.inputTokensDetails().cachedTokens() + u.outputTokensDetails().reasoningTokens(), 0L);
        });

        check("batch-failures", () -> {
            var b = finish(create(line("good"), line("bad", REFUSED)));
            equal(state(b), "completed 1+1 of 2");
            equal(ids(b.outputFileId().get()) + " " + ids(b.errorFileId().get()), "good bad");
            var bad = results(b.errorFileId().get()).get("bad");
            is(bad.get("error").isNull() && bad.at("/response/status_code").asInt() == 400, "got " + bad);
            var error = bad.at("/response/body/error");
            is(error.has("message") && error.has("type") && error.has("param") && error.has("code"), "got " + error);
        });

        check("batch-all-failed", () -> {
            var b = finish(create(line("a", REFUSED), line("b", REFUSED)));
            equal(state(b), "completed 0+2 of 2");
            is(b._outputFileId().isNull() && b.usage().get().totalTokens() == 0, "got " + b);
            equal(ids(b.errorFileId().get()), "a b");
        });

        check("batch-output-expiry", () -> {
            for (long seconds : List.of(7200L, 30 * 86400L)) {
                var params = batchOf(upload(ai, line("good"), line("bad", REFUSED)));
                if (seconds == 7200) params.outputExpiresAfter(outputExpiresAfter(seconds));
                var b = finish(ai.batches().create(params.build()));
                var files = Map.of("output", b.outputFileId().get(), "error", b.errorFileId().get());
                for (var kind : files.keySet()) {
                    var f = ai.files().retrieve(files.get(kind));
                    equal(f.purpose() + " " + f.filename(), "batch_output " + b.id() + "_" + kind + ".jsonl");
                    equal(lifetime(f), seconds);
                    equal(f.bytes(), (long) content(f.id()).length);
                }
            }
        });

        check("batch-endpoints", () -> {
            var bodies = Map.of(
                "/v1/completions", object("model", CHAT, "prompt", "once"),
                "/v1/embeddings", object("model", CHAT, "input", List.of("one", "two")),
                "/v1/moderations", object("model", CHAT, "input", "fine"),
                "/v1/responses", object("model", CHAT, "input", "hello"));
            for (var url : bodies.keySet()) {
                var l = request("a", url, bodies.get(url));
                var b = finish(ai.batches().create(batchOf(upload(ai, l)).endpoint(BatchCreateParams.Endpoint.of(url)).build()));
                equal(state(b) + " " + b.endpoint(), "completed 1+0 of 1 " + url);
                equal(results(b.outputFileId().get()).get("a").at("/response/body"), answer(l));
            }
        });

        check("batch-mixed", () -> {
            var b = finish(create(line("a"), line("b", "hello", OTHER)));
            equal(state(b), "completed 2+0 of 2");
            is(b._model().isNull(), "got " + b._model());
            var r = results(b.outputFileId().get());
            equal(r.get("a").at("/response/body/model").asText(), CHAT);
            equal(r.get("b").at("/response/body/model").asText(), OTHER);
        });

        check("batch-invalid", () -> {
            var b = finish(create(
                line("a"),
                "{broken",
                line("a"),
                with(line("b"), "method", "GET"),
                with(line("c"), "url", "/v1/embeddings"),
                with(line("d"), "custom_id", null),
                with(line("e"), "body", object("model", CHAT, "messages", List.of(), "stream", true)),
                line("f", "hello", "nope"),
                with(line("g"), "body", object("model", CHAT)),
                "",
                with(line("h"), "body", object("messages", List.of()))));
            equal(state(b), "failed 0+0 of 0");
            var errors = b.errors().get().data().get();
            equal(errors.stream().map(e -> e.line().get() + " " + e.code().get() + " " + e.param().orElse("-")).toList(), List.of(
                "2 invalid_json_line -",
                "3 duplicate_custom_id custom_id",
                "4 invalid_method method",
                "5 invalid_url url",
                "6 missing_required_parameter custom_id",
                "7 streaming_unsupported body.stream",
                "8 model_not_found body.model",
                "9 invalid_request body.messages",
                "11 invalid_request body.model"));
            equal(errors.get(0).message().get(), "This line is not parseable as valid JSON.");
            equal(errors.get(6).message().get(), "The provided model 'nope' is not supported by the Batch API.");
            is(b.failedAt().get() >= b.createdAt(), "failed before it was created");
            equal(nulls(b), "cancelled_at cancelling_at completed_at error_file_id expired_at finalizing_at in_progress_at metadata model output_file_id usage");
        });

        check("batch-input-missing", () -> {
            var data = ai.files().create(uploading(SAMPLE).purpose(FilePurpose.USER_DATA).build()).id();
            var messages = Map.of(
                "file-nope", "Cannot find file file-nope, or organization ",
                env("FOREIGN_FILE"), "Cannot find file ",
                data, "The file " + data + " has purpose 'user_data'");
            for (var id : messages.keySet()) {
                var b = finish(ai.batches().create(batchOf(id).build()));
                var errors = b.errors().get().data().get();
                equal(state(b) + " " + errors.size(), "failed 0+0 of 0 1");
                var e = errors.get(0);
                equal(e.code().get() + " " + e.param().get(), "invalid_request file_id");
                is(e._line().isNull() && e.message().get().startsWith(messages.get(id)), "got " + e);
            }
        });

        check("batch-expired", () -> {
            var b = finish(ai, env("EXPIRED_BATCH"));
            equal(state(b), "expired 1+0 of 2");
            equal(nulls(b), "cancelled_at cancelling_at completed_at errors failed_at metadata model");
            is(ordered(b.inProgressAt().get(), b.finalizingAt().get(), b.expiredAt().get()), "not in order: " + b);
            equal(ids(b.outputFileId().get()), "in-time");
            var late = results(b.errorFileId().get()).get("too-late");
            is(late.get("response").isNull(), "got " + late);
            equal(late.get("error"), json.valueToTree(object("code", "batch_expired",
                "message", "This request could not be executed before the completion window expired.")));
        });

        check("batch-pages", () -> {
            var newestFirst = reversed(IntStream.range(0, 120).mapToObj(String::valueOf).toList());
            var all = pages.batches().list(BatchListParams.builder().limit(50).build()).autoPager().stream().toList();
            equal(numbers(all), newestFirst);
            var page = pages.batches().list(BatchListParams.builder().limit(40).build());
            var byHand = new ArrayList<>(page.data());
            while (page.hasNextPage()) byHand.addAll((page = page.nextPage()).data());
            equal(numbers(byHand), newestFirst);
            var first = pages.batches().list();
            equal(first.data().size() + " " + first.hasMore().get(), "20 true");
            equal(first.response().firstId().get(), first.data().get(0).id());
            equal(first.response().lastId().get(), first.data().get(19).id());
        });
    }

    // Cancelling

    /** A batch when it was running, just cancelled, cancelled again, and in the end. */
    record Cancelled(Batch running, Batch once, Batch twice, Batch end) {
        private static Cancelled one;

        static Cancelled get() throws Exception {
            if (one == null) {
                var id = create(line("a"), line("b"), line("in-flight", "hello", SLOW), line("waiting", "hello", BUSY)).id();
                var running = await(ai, id, b -> b.requestCounts().get().completed() == 2);
                one = new Cancelled(running, ai.batches().cancel(id), ai.batches().cancel(id), finish(ai, id));
            }
            return one;
        }
    }

    static void cannotCancel(Batch b) throws Exception {
        int before = requests.get();
        new Refusal(409, "Cannot cancel a batch with status '" + b.status() + "'.").of(() -> ai.batches().cancel(b.id()));
        equal(requests.get() - before, 1);
        equal(ai.batches().retrieve(b.id()), b);
    }

    static void cancelling() {
        check("cancel-validating", () -> {
            var id = createAt(strict, line("a", "hello", "not-known-yet")).id();
            equal(strict.batches().retrieve(id).status(), Batch.Status.VALIDATING);
            matches(strict.batches().cancel(id).status().toString(), "cancell(ing|ed)");
            var b = finish(strict, id);
            equal(state(b), "cancelled 0+0 of 0");
            equal(nulls(b), "completed_at error_file_id errors expired_at failed_at finalizing_at in_progress_at metadata model output_file_id usage");
            is(ordered(b.cancellingAt().get(), b.cancelledAt().get()), "not in order: " + b);
            equal(strict.batches().cancel(id), b);
        });

        check("cancel-in-progress", () -> {
            var b = Cancelled.get();
            equal(state(b.running), "in_progress 2+0 of 4");
            is(b.running._usage().isNull() && b.running._outputFileId().isNull(), "got " + b.running);
            equal(b.once.status(), Batch.Status.CANCELLING);
            is(b.once._outputFileId().isNull() && b.once._errorFileId().isNull(), "got " + b.once);
            equal(state(b.end), "cancelled 3+0 of 4");
            equal(b.end.cancellingAt(), b.once.cancellingAt());
            is(ordered(b.end.cancellingAt().get(), b.end.cancelledAt().get()), "not in order: " + b.end);
            equal(ids(b.end.outputFileId().get()) + " " + ids(b.end.errorFileId().get()), "a b in-flight waiting");
            var waiting = results(b.end.errorFileId().get()).get("waiting");
            is(waiting.get("response").isNull(), "got " + waiting);
            equal(waiting.at("/error/code").asText(), "batch_cancelled");
        });

        check("cancel-again", () -> {
            var b = Cancelled.get();
            equal(b.twice.status() + " " + b.twice.cancellingAt(), "cancelling " + b.once.cancellingAt());
            equal(ai.batches().cancel(b.end.id()), b.end);
        });

        check("cancel-completed", () -> cannotCancel(completed()));
        check("cancel-failed", () -> cannotCancel(finish(create(line("a", "hello", "nope")))));
        check("cancel-expired", () -> cannotCancel(finish(ai, env("EXPIRED_BATCH"))));
    }

    // Models

    static void models() {
        check("models-list", () -> {
            var ids = new HashSet<String>();
            for (var m : ai.models().list().autoPager()) {
                ids.add(m.id());
                is(m.created() > 0 && !m.ownedBy().isEmpty(), "got " + m);
            }
            is(ids.containsAll(List.of(CHAT, OTHER, SLOW, BUSY)), "got " + ids);
        });

        check("models-retrieve", () -> {
            for (var id : List.of(CHAT, OTHER)) equal(ai.models().retrieve(id).id(), id);
            new Refusal(404, "The model 'no/such:model' does not exist", "model_not_found", "model").of(() ->
                ai.models().retrieve("no/such:model"));
        });
    }

    // Errors

    /** Creating a batch with params is refused. */
    static void refused(Refusal no, BatchCreateParams.Builder params) throws Exception {
        no.of(() -> ai.batches().create(params.build()));
    }

    static BatchCreateParams.Metadata metadata(String name, Object value) {
        return BatchCreateParams.Metadata.builder().putAdditionalProperty(name, JsonValue.from(value)).build();
    }

    static void errors() {
        check("error-key-missing", () -> {
            var anonymous = client().removeHeaders("Authorization").apiKey("").build();
            var no = new Refusal(401, "You didn't provide an API key.");
            no.of(() -> anonymous.models().list());
            no.of(() -> anonymous.files().list());
            no.of(() -> anonymous.batches().list());
            no.of(() -> anonymous.files().create(uploading(SAMPLE).build()));
        });

        check("error-key-wrong", () -> {
            for (var key : List.of("sk-wrong-0123456789abcdefghij", API_KEY + "x")) {
                var wrong = client().apiKey(key).build();
                new Refusal(401, "Incorrect API key provided: ", "invalid_api_key", null).of(() -> wrong.models().list());
                is(!failure(() -> wrong.batches().list()).body().toString().contains(key.substring(9, key.length() - 4)), "the key is told");
            }
        });

        check("error-not-found", () -> {
            for (var id : List.of("batch_nope", "a/../b", "%2e%2e", "x".repeat(2000), "été 🙂", "nul\0")) {
                var no = new Refusal(404, "No batch found with id '");
                no.of(() -> ai.batches().retrieve(id));
                no.of(() -> ai.batches().cancel(id));
                unknownFile(id);
            }
        });

        check("error-parameter-missing", () -> {
            var code = "missing_required_parameter";
            refused(new Refusal(400, "Missing required parameter: 'input_file_id'.", code, "input_file_id"),
                batchOf("file-x").inputFileId(JsonMissing.of()));
            refused(new Refusal(400, "Missing required parameter: 'endpoint'.", code, "endpoint"),
                batchOf("file-x").endpoint(JsonMissing.of()));
            refused(new Refusal(400, "Missing required parameter: 'completion_window'.", code, "completion_window"),
                batchOf("file-x").completionWindow(JsonMissing.of()));
            new Refusal(400, "Missing required parameter: 'purpose'.", code, "purpose").of(() ->
                ai.files().create(uploading(SAMPLE).purpose(FilePurpose.of("")).build())); // no SDK's way to leave it out
        });

        check("error-parameter-value", () -> {
            refused(new Refusal(400, "Supported values are: '/v1/responses', '/v1/chat/completions'", "invalid_value", "endpoint"),
                batchOf("file-x").endpoint(BatchCreateParams.Endpoint.of("/v1/nope")));
            for (var window : List.of("25", "1.5h", "tomorrow")) {
                refused(new Refusal(400, "Invalid value: '" + window + "'.", "invalid_value", "completion_window"),
                    batchOf("file-x").completionWindow(BatchCreateParams.CompletionWindow.of(window)));
            }
            refused(new Refusal(400, "integer below minimum value. Expected a value >= 3600, but got 1 instead.",
                "integer_below_min_value", "output_expires_after.seconds"), batchOf("file-x").outputExpiresAfter(outputExpiresAfter(1)));
            refused(new Refusal(400, "Invalid value: 'now'.", "invalid_value", "output_expires_after.anchor"),
                batchOf("file-x").outputExpiresAfter(outputExpiresAfter(3600).toBuilder().anchor(JsonValue.from("now")).build()));
        });

        check("error-metadata", () -> {
            var seventeen = BatchCreateParams.Metadata.builder();
            for (int n = 0; n < 17; n++) seventeen.putProperty("" + n, "");
            refused(new Refusal(400,
                "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with 17",
                "object_above_max_properties", "metadata"), batchOf("file-x").metadata(seventeen.build()));
            refused(new Refusal(400,
                "Invalid 'metadata.note': string too long. Expected a string with maximum length 512, but got a string with length 513",
                "string_above_max_length", "metadata.note"), batchOf("file-x").metadata(metadata("note", "é".repeat(513))));
            refused(new Refusal(400, "string too long", "string_above_max_length", "metadata"),
                batchOf("file-x").metadata(metadata("k".repeat(65), "")));
            refused(new Refusal(400, "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
                "invalid_type", "metadata.tags"), batchOf("file-x").metadata(metadata("tags", List.of("a"))));
        });

        check("error-limit", () -> {
            new Refusal(400, "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
                "integer_above_max_value", "limit").of(() -> ai.batches().list(BatchListParams.builder().limit(101).build()));
            new Refusal(400, "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
                "integer_below_min_value", "limit").of(() -> ai.batches().list(BatchListParams.builder().limit(-1).build()));
            var empty = ai.batches().list(BatchListParams.builder().limit(0).build()).response();
            equal(empty.data() + " " + empty.hasMore() + " " + nulls(empty._allProperties()), "[] false first_id last_id");
            new Refusal(404, "No batch found with id 'batch_nope'.").of(() ->
                ai.batches().list(BatchListParams.builder().after("batch_nope").build()));
        });

        check("error-route", () -> new Refusal(404, "Invalid URL (GET /v1/nope/models)").of(() ->
            client().baseUrl(BASE_URL + "/nope").build().models().list()));

        check("error-method", () -> new Refusal(405, "Not allowed to DELETE on /v1/models/sim-chat.").of(() ->
            ai.models().delete(CHAT)));

        check("error-foreign", () -> {
            String file = env("FOREIGN_FILE"), batch = env("FOREIGN_BATCH");
            unknownFile(file);
            new Refusal(404, "No such File object: " + file, null, "id").of(() ->
                ai.files().list(FileListParams.builder().after(file).build()));
            var noBatch = new Refusal(404, "No batch found with id '" + batch + "'.");
            noBatch.of(() -> ai.batches().retrieve(batch));
            noBatch.of(() -> ai.batches().cancel(batch));
            noBatch.of(() -> ai.batches().list(BatchListParams.builder().after(batch).build()));
            unknownUpload(env("FOREIGN_UPLOAD"));
            Refusal.open(400, env("FOREIGN_PART")).of(() -> complete(begin(bytes("x")).id(), env("FOREIGN_PART")));
            is(!fileIds().contains(file), "the file is listed");
            is(ai.batches().list().autoPager().stream().noneMatch(b -> b.id().equals(batch)), "the batch is listed");
        });

        check("profile-openai", () -> {
            var b = finish(strict, createAt(strict, line("a"), line("b", "hello", OTHER)).id());
            equal(state(b), "failed 0+0 of 0");
            var errors = b.errors().get().data().get();
            var e = errors.get(0);
            equal(errors.size() + " " + e.code().get() + " " + e.param().get() + " " + e.line().get(), "1 mismatched_model body.model 2");
            var hour = batchOf(upload(ai, line("a"))).completionWindow(BatchCreateParams.CompletionWindow.of("1h")).build();
            new Refusal(400, "Invalid value: '1h'. Value must be '24h'.", "invalid_value", "completion_window").of(() ->
                strict.batches().create(hour));
            equal(ai.batches().create(hour).completionWindow(), "1h");
        });
    }

    // Clients

    static void clients() {
        check("request-ids", () -> {
            var ids = new HashSet<String>();
            try (var created = ai.files().withRawResponse().create(uploading(SAMPLE).build())) {
                ids.add(created.requestId().get());
                try (var retrieved = ai.files().withRawResponse().retrieve(created.parse().id())) {
                    ids.add(retrieved.requestId().get());
                }
            }
            try (var listed = ai.batches().withRawResponse().list()) {
                ids.add(listed.requestId().get());
            }
            ids.addAll(failure(() -> ai.batches().retrieve("batch_nope")).headers().values("x-request-id"));
            equal(ids.size(), 4);
        });

        check("client-settings", () -> {
            var c = client().baseUrl(BASE_URL + "/").organization("org-x").project("proj_x").putHeader("OpenAI-Beta", "x").build();
            var one = BatchListParams.builder().limit(1).build();
            equal(c.batches().list(one).data().get(0).id(), ai.batches().list(one).data().get(0).id());
        });

        check("client-async", () -> {
            var async = ai.async();
            var b = async.files().create(uploading(SAMPLE).build())
                .thenCompose(f -> async.batches().create(batchOf(f.id()).build())).get();
            while (!b.status().equals(Batch.Status.COMPLETED)) {
                Thread.sleep(50);
                b = async.batches().retrieve(b.id()).get();
            }
            try (var output = async.files().content(b.outputFileId().get()).get()) {
                equal(new String(output.body().readAllBytes()).lines().count(), 2L);
            }
            var all = new ArrayList<Batch>();
            pages.async().batches().list(BatchListParams.builder().limit(50).build()).get()
                .autoPager().subscribe(all::add).onCompleteFuture().get();
            equal(all.size(), 120);
        });
    }

    // Uploads in parts

    /** The beginning of an upload in parts, to be changed. */
    static UploadCreateParams.Builder uploadOf(byte[] content) {
        return UploadCreateParams.builder().bytes(content.length).filename("in.jsonl")
            .mimeType("application/jsonl").purpose(FilePurpose.BATCH);
    }

    static Upload begin(byte[] content) {
        return ai.uploads().create(uploadOf(content).build());
    }

    static UploadPart part(String uploadId, byte[] data) {
        return ai.uploads().parts().create(uploadId, PartCreateParams.builder().data(data).build());
    }

    static Upload complete(String uploadId, String... partIds) {
        return ai.uploads().complete(uploadId, UploadCompleteParams.builder().partIds(List.of(partIds)).build());
    }

    /** Every call that names the upload finds nothing. */
    static void unknownUpload(String id) throws Exception {
        var no = new Refusal(404, "No such Upload object: " + id, null, "upload_id");
        no.of(() -> part(id, bytes("x")));
        no.of(() -> complete(id));
        no.of(() -> ai.uploads().cancel(id));
    }

    static byte[] slice(int from, int to) {
        return Arrays.copyOfRange(SAMPLE, from, to);
    }

    static String md5(byte[] content) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("MD5").digest(content));
    }

    static void parts() {
        check("parts-order", () -> {
            var u = begin(SAMPLE);
            matches(u.id(), "upload_.+");
            equal(u._object_() + " " + u.status() + " " + u.filename() + " " + u.purpose(), "upload pending in.jsonl batch");
            equal(List.of(u.bytes(), u.expiresAt() - u.createdAt()), List.of((long) SAMPLE.length, 3600L));
            equal(nulls(u._allProperties()), "file");
            var second = part(u.id(), slice(100, SAMPLE.length));
            matches(second.id(), "part_.+");
            equal(second._object_() + " " + second.uploadId(), "upload.part " + u.id());
            part(u.id(), bytes("dropped"));
            u = complete(u.id(), part(u.id(), slice(0, 100)).id(), second.id());
            var f = u.file().get();
            equal(u.status() + " " + f.filename() + " " + f.bytes(), "completed in.jsonl " + SAMPLE.length);
            equal(content(f.id()), SAMPLE);
            equal(ai.files().retrieve(f.id()), f);
        });

        check("parts-parallel", () -> {
            var content = new byte[4 << 20];
            new Random().nextBytes(content);
            var u = ai.uploads().create(uploadOf(content).filename("x.bin").purpose(FilePurpose.USER_DATA).build());
            var pool = Executors.newFixedThreadPool(8);
            var sent = pool.invokeAll(IntStream.range(0, 8).mapToObj(n ->
                (Callable<String>) () -> part(u.id(), Arrays.copyOfRange(content, n << 19, n + 1 << 19)).id()).toList());
            pool.shutdown();
            var ids = new ArrayList<String>();
            for (var id : sent) ids.add(id.get());
            var f = complete(u.id(), ids.toArray(String[]::new)).file().get();
            is(Arrays.equals(content(f.id()), content), "other bytes came back");
        });

        check("parts-chunked", () -> { throw new Lacks("the SDK has no helper for it"); });

        check("parts-md5", () -> {
            var u = begin(SAMPLE);
            var params = UploadCompleteParams.builder().addPartId(part(u.id(), SAMPLE).id());
            Refusal.open(400, "").of(() ->
                ai.uploads().complete(u.id(), params.md5(md5(bytes("other"))).build()));
            equal(ai.uploads().complete(u.id(), params.md5(md5(SAMPLE)).build()).status(), Upload.Status.COMPLETED);
        });

        check("parts-expiry", () -> {
            var after = UploadCreateParams.ExpiresAfter.builder().seconds(7200).build();
            var u = ai.uploads().create(uploadOf(SAMPLE).expiresAfter(after).build());
            equal(u.expiresAt() - u.createdAt(), 3600L);
            equal(lifetime(complete(u.id(), part(u.id(), SAMPLE).id()).file().get()), 7200L);
        });

        check("parts-cancel", () -> {
            var u = begin(SAMPLE);
            var id = part(u.id(), SAMPLE).id();
            equal(ai.uploads().cancel(u.id()).status(), Upload.Status.CANCELLED);
            var no = Refusal.open(400, "Upload " + u.id() + " is not pending; its status is 'cancelled'.");
            no.of(() -> part(u.id(), SAMPLE));
            no.of(() -> complete(u.id(), id));
        });

        check("parts-repeat", () -> {
            var u = begin(SAMPLE);
            var id = part(u.id(), SAMPLE).id();
            equal(complete(u.id(), id), complete(u.id(), id));
            Refusal.open(400, "Upload " + u.id() + " is not pending; its status is 'completed'.").of(() ->
                part(u.id(), SAMPLE));
        });

        check("parts-refused", () -> {
            unknownUpload("upload_nope");
            var u = begin(SAMPLE);
            var id = part(u.id(), slice(1, SAMPLE.length)).id();
            Refusal.open(400, "The total size of the parts (%d bytes) does not match the upload size (%d bytes)."
                .formatted(SAMPLE.length - 1, SAMPLE.length)).of(() -> complete(u.id(), id));
            Refusal.open(400, "part_nope").of(() -> complete(u.id(), "part_nope"));
            Refusal.open(400, id).of(() -> complete(u.id(), id, id));
        });

        check("parts-batch", () -> {
            var u = begin(SAMPLE);
            u = complete(u.id(), part(u.id(), slice(0, 77)).id(), part(u.id(), slice(77, SAMPLE.length)).id());
            equal(state(finish(ai.batches().create(batchOf(u.file().get().id()).build()))), "completed 2+0 of 2");
        });
    }
}
