import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.JsonValue;
import com.openai.core.MultipartField;
import com.openai.errors.BadRequestException;
import com.openai.errors.NotFoundException;
import com.openai.errors.OpenAIServiceException;
import com.openai.errors.UnauthorizedException;
import com.openai.errors.UnexpectedStatusCodeException;
import com.openai.models.batches.Batch;
import com.openai.models.batches.BatchCreateParams;
import com.openai.models.files.FileCreateParams;
import com.openai.models.files.FilePurpose;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Predicate;
import java.util.stream.Collectors;

/** What the checks share: clients, inputs, ways to fail, and the running of checks. */
class Harness {
    static final String CHAT = "sim-chat", OTHER = "org/sim-chat:free", SLOW = "sim-slow", BUSY = "sim-busy";
    static final String REFUSED = "refuse-me"; // the model server answers 400 to a body with this text
    static final String BASE_URL = env("BASE_URL"), API_KEY = env("API_KEY");

    static final AtomicInteger requests = new AtomicInteger(); // of all clients

    static final OpenAIClient ai = client().build();
    static final OpenAIClient pages = client().apiKey(env("PAGES_KEY")).build(); // 120 files and 120 batches
    static final OpenAIClient strict = client().baseUrl(env("STRICT_URL")).apiKey(env("STRICT_KEY")).build();

    static String env(String name) {
        return System.getenv(name);
    }

    /** A client that takes no answer whose types differ from the SDK's. */
    static OpenAIOkHttpClient.Builder client() {
        return OpenAIOkHttpClient.builder().baseUrl(BASE_URL).apiKey(API_KEY).responseValidation(true)
            .addInterceptor(chain -> {
                requests.incrementAndGet();
                return chain.proceed(chain.request());
            });
    }

    // Inputs

    static final ObjectMapper json = new ObjectMapper();

    /** An object of pairs, in their order. */
    static Map<String, Object> object(Object... pairs) {
        var o = new LinkedHashMap<String, Object>();
        for (int i = 0; i < pairs.length; i += 2) o.put((String) pairs[i], pairs[i + 1]);
        return o;
    }

    static Map<String, Object> with(Map<String, Object> line, String name, Object value) {
        var o = new LinkedHashMap<>(line);
        if (value == null) o.remove(name); else o.put(name, value);
        return o;
    }

    static Map<String, Object> request(String customId, String url, Map<String, Object> body) {
        return object("custom_id", customId, "method", "POST", "url", url, "body", body);
    }

    static Map<String, Object> line(String customId, String text, String model) {
        return request(customId, "/v1/chat/completions",
            object("model", model, "messages", List.of(object("role", "user", "content", text))));
    }

    static Map<String, Object> line(String customId, String text) { return line(customId, text, CHAT); }

    static Map<String, Object> line(String customId) { return line(customId, "hello"); }

    static byte[] jsonl(Object... lines) throws Exception {
        var text = new StringBuilder();
        for (var l : lines) text.append(l instanceof String ? l : json.writeValueAsString(l)).append('\n');
        return bytes(text.toString());
    }

    static byte[] bytes(String text) { return text.getBytes(StandardCharsets.UTF_8); }

    static final byte[] SAMPLE = sample();

    private static byte[] sample() {
        try {
            return jsonl(line("a"), line("b"));
        } catch (Exception e) {
            throw new ExceptionInInitializerError(e);
        }
    }

    static MultipartField<InputStream> file(byte[] content, String name) {
        return file(new ByteArrayInputStream(content), name);
    }

    static MultipartField<InputStream> file(InputStream content, String name) {
        return MultipartField.<InputStream>builder().value(content).filename(name).build();
    }

    /** The upload of a batch input, to be changed. */
    static FileCreateParams.Builder uploading(byte[] content) {
        return FileCreateParams.builder().file(file(content, "in.jsonl")).purpose(FilePurpose.BATCH);
    }

    static String upload(OpenAIClient to, Object... lines) throws Exception {
        return to.files().create(uploading(jsonl(lines)).build()).id();
    }

    /** The creation of a batch of chat requests, to be changed. */
    static BatchCreateParams.Builder batchOf(String fileId) {
        return BatchCreateParams.builder().inputFileId(fileId)
            .endpoint(BatchCreateParams.Endpoint.V1_CHAT_COMPLETIONS)
            .completionWindow(BatchCreateParams.CompletionWindow._24H);
    }

    static Batch create(Object... lines) throws Exception { return createAt(ai, lines); }

    static Batch createAt(OpenAIClient to, Object... lines) throws Exception {
        return to.batches().create(batchOf(upload(to, lines)).build());
    }

    // Waiting

    /** The batch as it is once the condition holds. */
    static Batch await(OpenAIClient at, String id, Predicate<Batch> until) throws Exception {
        for (long giveUp = System.nanoTime() + 30_000_000_000L; ; Thread.sleep(50)) {
            var b = at.batches().retrieve(id);
            if (until.test(b)) return b;
            is(System.nanoTime() < giveUp, "still " + b.status() + " after 30 s");
        }
    }

    static Batch finish(Batch b) throws Exception { return finish(ai, b.id()); }

    static Batch finish(OpenAIClient at, String id) throws Exception {
        var ends = Set.of(Batch.Status.COMPLETED, Batch.Status.FAILED, Batch.Status.EXPIRED, Batch.Status.CANCELLED);
        return await(at, id, b -> ends.contains(b.status()));
    }

    /** A batch's status, and how many of its requests completed, failed, and are. */
    static String state(Batch b) {
        var c = b.requestCounts().get();
        return b.status() + " " + c.completed() + "+" + c.failed() + " of " + c.total();
    }

    // Results

    static byte[] content(String fileId) throws Exception {
        try (var response = ai.files().content(fileId)) {
            return response.body().readAllBytes();
        }
    }

    /** The lines of a result file by custom_id. */
    static Map<String, JsonNode> results(String fileId) throws Exception {
        var byId = new TreeMap<String, JsonNode>();
        for (var text : new String(content(fileId), StandardCharsets.UTF_8).lines().toList()) {
            var line = json.readTree(text);
            equal(json.convertValue(line, new TypeReference<LinkedHashMap<String, Object>>() {}).keySet().toString(),
                "[id, custom_id, response, error]");
            matches(line.get("id").asText(), "batch_req_[0-9a-f]{32}");
            is(byId.put(line.get("custom_id").asText(), line) == null, "twice in the file: " + text);
        }
        return byId;
    }

    /** What the model server says to a line's body; it says the same each time. */
    static JsonNode answer(Map<String, Object> line) throws Exception {
        var url = URI.create(env("SIM_URL") + line.get("url").toString().substring("/v1".length()));
        var body = json.writeValueAsString(line.get("body")); // the very bytes that stand in the line
        var post = HttpRequest.newBuilder(url).POST(HttpRequest.BodyPublishers.ofString(body));
        return json.readTree(HttpClient.newHttpClient().send(post.build(), HttpResponse.BodyHandlers.ofByteArray()).body());
    }

    // Judging

    /** The SDK has no such thing; says why. */
    static class Lacks extends Exception {
        Lacks(String why) { super(why); }
    }

    static void is(boolean ok, String why) {
        if (!ok) throw new AssertionError(why);
    }

    static void equal(Object got, Object want) {
        is(Objects.deepEquals(got, want), "got " + got + ", want " + want);
    }

    static void matches(String got, String pattern) { is(got.matches(pattern), "got " + got + ", want " + pattern); }

    /** The names of the fields that are explicitly null. All fields of the SDK's must be there. */
    static String nulls(Map<String, JsonValue> fields) {
        var names = new TreeSet<String>();
        fields.forEach((name, value) -> {
            is(!value.isMissing(), name + " is missing");
            if (value.isNull()) names.add(name);
        });
        return String.join(" ", names);
    }

    static String nulls(Batch b) { return nulls(b._allProperties()); }

    static final String ANY = "*";

    /** What an error must say: part of its message, its code and its param. */
    record Refusal(int status, String message, String code, String param) {
        Refusal(int status, String message) { this(status, message, null, null); }

        /** Where the contract leaves the error's code and param open. */
        static Refusal open(int status, String message) { return new Refusal(status, message, ANY, ANY); }

        private static final Map<Integer, Class<?>> CLASSES = Map.of(
            400, BadRequestException.class, 401, UnauthorizedException.class, 404, NotFoundException.class,
            405, UnexpectedStatusCodeException.class, 409, UnexpectedStatusCodeException.class);

        /** The call fails with the SDK's class for the status, and says all of this. */
        void of(Call call) throws Exception {
            var e = failure(call);
            equal(e.getClass(), CLASSES.get(status));
            equal(e.statusCode() + " " + e.type().orElse(null), status + " invalid_request_error");
            is(ANY.equals(code) || Objects.equals(e.code().orElse(null), code), "got code " + e.code() + ", want " + code);
            is(ANY.equals(param) || Objects.equals(e.param().orElse(null), param), "got param " + e.param() + ", want " + param);
            var body = e.body().convert(JsonNode.class);
            if (body.has("error")) body = body.get("error");
            is(body.path("message").asText().contains(message), "got " + body + ", want '" + message + "' in its message");
            for (var field : List.of("message", "type", "param", "code")) is(body.has(field), "no " + field + " in " + body);
            matches(String.join(" ", e.headers().values("x-request-id")), "req_.+");
        }
    }

    static OpenAIServiceException failure(Call call) throws Exception {
        Object got;
        try {
            got = call.make();
        } catch (OpenAIServiceException e) {
            return e;
        }
        throw new AssertionError("got " + got + ", want an error");
    }

    interface Call {
        Object make() throws Exception;
    }

    // Running

    interface Check {
        void run() throws Exception;
    }

    /** Runs a check; prints its id, how it went, and why. */
    static void check(String id, Check check) {
        String outcome;
        try {
            check.run();
            outcome = "ok";
        } catch (Lacks e) {
            outcome = "-  " + e.getMessage();
        } catch (Exception | AssertionError e) {
            var where = Arrays.stream(e.getStackTrace()).filter(f -> "Checks.java".equals(f.getFileName())).findFirst();
            outcome = "FAILED  " + where.map(f -> "line " + f.getLineNumber() + ": ").orElse("") + e.toString().replaceAll("\\s+", " ");
        }
        System.out.println(id + "  " + outcome);
    }
}
