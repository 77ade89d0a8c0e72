package sim

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"math"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// created is when every answer says it was made: the same request gets the same bytes.
const created = "1767225600" // 2026-01-01

// vocabulary is what answers are made of, a token a word. No word needs an escape in JSON.
const vocabulary = `a after again all also and any as at be before between both but by can each even
every few first for from given good has how if in is it its just large last less light line many may
more most much near new night no not now of off on one only open or other over own peak power quiet
same small so some still such than that the their then these they this time to two under until use
very was water way we well when where which while who will with work would year`

// echoLimit is how many bytes of a request an answer repeats.
const echoLimit = 80

// An answer is what a call will be told, settled before the time that it takes is spent.
type answer struct {
	id           string // 24 hexadecimal digits
	dice         draw   // for what is still open: the words
	choices      []choice
	promptTokens int
	cachedTokens int
	outputTokens int
	longest      int // choice, in tokens
}

// A choice is one text of an answer.
type choice struct {
	echo   []byte // what of the request it repeats
	tokens int
	capped bool // it would have been longer
}

// plan settles the answer to c.query, or refuses what does not fit the context.
func (s *Server) plan(c *call, ep endpoint, of digest) (answer, error) {
	q := &c.query
	a := answer{dice: newDraw(s.cfg.Seed, of, forAnswer), choices: c.choices[:0]}
	var id [12]byte
	binary.BigEndian.PutUint64(id[:], a.dice.next())
	binary.BigEndian.PutUint32(id[8:], uint32(a.dice.next()))
	a.id = hex.EncodeToString(id[:])

	generates := ep == chat || ep == completions || ep == responses
	if generates && len(q.inputs)*q.n > maxInputs {
		return a, badRequest("n", fmt.Sprintf("more than %d answers are asked for", maxInputs))
	}
	for _, in := range q.inputs {
		a.promptTokens += in.tokens
		room := s.cfg.Context - in.tokens
		if room < 0 || generates && room == 0 {
			return a, badRequest(ep.promptField(), fmt.Sprintf(
				"This model's maximum context length is %d tokens. However, your request has %d input tokens. "+
					"Please reduce the length of the input.", s.cfg.Context, in.tokens))
		}
		if !generates {
			continue
		}
		if q.maxTokens > room {
			return a, badRequest("max_tokens", fmt.Sprintf(
				"'max_tokens' or 'max_completion_tokens' is too large: %d. This model's maximum context length is "+
					"%d tokens and your request has %d input tokens (%[1]d > %[2]d - %[3]d).",
				q.maxTokens, s.cfg.Context, in.tokens))
		}
		limit := room
		if q.maxTokens > 0 {
			limit = q.maxTokens
		}
		echo := q.echo
		if ep == completions {
			echo = nil
			if in.raw[0] == '"' {
				echo = inside(in.raw)
			}
		}
		for range q.n {
			n := a.dice.length(s.cfg.MedianTokens, s.cfg.P99Tokens)
			ch := choice{echo: echo, tokens: min(n, limit), capped: n > limit}
			a.choices = append(a.choices, ch)
			a.outputTokens += ch.tokens
			a.longest = max(a.longest, ch.tokens)
		}
	}
	c.choices = a.choices
	return a, nil
}

// appendAnswer appends the answer as the endpoint words it.
func (s *Server) appendAnswer(b []byte, ep endpoint, q *query, a *answer) []byte {
	switch ep {
	case chat:
		return s.appendChat(b, q, a)
	case completions:
		return s.appendCompletions(b, q, a)
	case responses:
		return s.appendResponse(b, q, a)
	case embeddings:
		return s.appendEmbeddings(b, q, a)
	default:
		return s.appendModerations(b, q, a)
	}
}

func (s *Server) appendChat(b []byte, q *query, a *answer) []byte {
	b = append(b, `{"id":"chatcmpl-`...)
	b = append(b, a.id...)
	b = append(b, `","object":"chat.completion","created":`+created+`,"model":`...)
	b = append(b, q.model...)
	b = append(b, `,"choices":[`...)
	for i := range a.choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"message":{"role":"assistant","content":"`...)
		b = s.appendText(b, &a.dice, &a.choices[i])
		b = append(b, `","refusal":null},"logprobs":null,"finish_reason":"`...)
		b = append(b, a.choices[i].finishReason()...)
		b = append(b, `"}`...)
	}
	b = append(b, `],"usage":`...)
	b = s.appendUsage(b, a)
	return append(b, '}')
}

func (s *Server) appendCompletions(b []byte, q *query, a *answer) []byte {
	b = append(b, `{"id":"cmpl-`...)
	b = append(b, a.id...)
	b = append(b, `","object":"text_completion","created":`+created+`,"model":`...)
	b = append(b, q.model...)
	b = append(b, `,"choices":[`...)
	for i := range a.choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"text":"`...)
		b = s.appendText(b, &a.dice, &a.choices[i])
		b = append(b, `","logprobs":null,"finish_reason":"`...)
		b = append(b, a.choices[i].finishReason()...)
		b = append(b, `"}`...)
	}
	b = append(b, `],"usage":`...)
	b = s.appendUsage(b, a)
	return append(b, '}')
}

func (s *Server) appendResponse(b []byte, q *query, a *answer) []byte {
	status, details := "completed", "null"
	if a.choices[0].capped {
		status, details = "incomplete", `{"reason":"max_output_tokens"}`
	}
	b = append(b, `{"id":"resp_`...)
	b = append(b, a.id...)
	b = append(b, `","object":"response","created_at":`+created+`,"status":"`...)
	b = append(b, status...)
	b = append(b, `","error":null,"incomplete_details":`...)
	b = append(b, details...)
	b = append(b, `,"instructions":null,"metadata":{},"model":`...)
	b = append(b, q.model...)
	b = append(b, `,"output":[{"type":"message","id":"msg_`...)
	b = append(b, a.id...)
	b = append(b, `","status":"`...)
	b = append(b, status...)
	b = append(b, `","role":"assistant","content":[{"type":"output_text","annotations":[],"text":"`...)
	b = s.appendText(b, &a.dice, &a.choices[0])
	b = append(b, `"}]}],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"usage":{"input_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens), 10)
	b = append(b, `,"input_tokens_details":{"cached_tokens":`...)
	cached := 0 // this API has the field whether anyone counts or not
	if s.cfg.ReportCached {
		cached = a.cachedTokens
	}
	b = strconv.AppendInt(b, int64(cached), 10)
	b = append(b, `},"output_tokens":`...)
	b = strconv.AppendInt(b, int64(a.outputTokens), 10)
	b = append(b, `,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens+a.outputTokens), 10)
	return append(b, "}}"...)
}

// appendEmbeddings gives equal texts equal vectors, whatever request they stand in.
func (s *Server) appendEmbeddings(b []byte, q *query, a *answer) []byte {
	model := fnv.New64a()
	model.Write(q.model)
	seed := s.cfg.Seed ^ model.Sum64()
	dimensions := q.dimensions
	if dimensions == 0 {
		dimensions = s.cfg.Dimensions
	}
	vector := make([]float32, dimensions)

	b = append(b, `{"object":"list","data":[`...)
	for i, in := range q.inputs {
		if i > 0 {
			b = append(b, ',')
		}
		dice := newDraw(seed, digestOf(in.raw), forAnswer)
		dice.direction(vector)
		b = append(b, `{"object":"embedding","index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"embedding":`...)
		if q.base64 {
			b = appendBase64(b, vector)
		} else {
			b = appendFloats(b, vector)
		}
		b = append(b, '}')
	}
	b = append(b, `],"model":`...)
	b = append(b, q.model...)
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens), 10)
	return append(b, "}}"...)
}

// appendModerations finds nothing to object to.
func (s *Server) appendModerations(b []byte, q *query, a *answer) []byte {
	categories := [...]string{"harassment", "hate", "illicit", "self-harm", "sexual", "violence"}

	b = append(b, `{"id":"modr-`...)
	b = append(b, a.id...)
	b = append(b, `","model":`...)
	b = append(b, q.model...)
	b = append(b, `,"results":[`...)
	for i := range q.inputs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"flagged":false,"categories":{`...)
		for j, category := range categories {
			if j > 0 {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, category...)
			b = append(b, `":false`...)
		}
		b = append(b, `},"category_scores":{`...)
		for j, category := range categories {
			if j > 0 {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, category...)
			b = append(b, `":`...)
			b = strconv.AppendFloat(b, a.dice.share()/100, 'f', 6, 64)
		}
		b = append(b, "}}"...)
	}
	return append(b, "]}"...)
}

func (s *Server) appendUsage(b []byte, a *answer) []byte {
	b = append(b, `{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens), 10)
	b = append(b, `,"completion_tokens":`...)
	b = strconv.AppendInt(b, int64(a.outputTokens), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(a.promptTokens+a.outputTokens), 10)
	if s.cfg.ReportCached {
		b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
		b = strconv.AppendInt(b, int64(a.cachedTokens), 10)
		b = append(b, '}')
	}
	return append(b, '}')
}

func (s *Server) appendModel(b []byte, id string) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, id)
	b = append(b, `,"object":"model","created":`+created+`,"owned_by":"offpeak sim","max_model_len":`...)
	b = strconv.AppendInt(b, int64(s.cfg.Context), 10)
	return append(b, '}')
}

func (c *choice) finishReason() string {
	if c.capped {
		return "length"
	}
	return "stop"
}

// appendText appends the text of a choice: what was asked, if there is room for it, and words
// until it has its length.
func (s *Server) appendText(b []byte, dice *draw, c *choice) []byte {
	left := c.tokens
	echo := clip(c.echo, echoLimit)
	if n := 3 + textTokens(len(echo)); len(echo) > 0 && n < left {
		left -= n
		b = append(b, "You asked: "...)
		b = append(b, echo...)
		if len(echo) < len(c.echo) {
			b = append(b, "…"...)
		}
		b = append(b, " — "...)
	}
	for i := range left {
		if i > 0 {
			b = append(b, ' ')
		}
		word, _ := bits.Mul64(dice.next(), uint64(len(s.words)))
		b = append(b, s.words[word]...)
	}
	return append(b, '.')
}

// clip returns the beginning of the inside of a JSON string: at most n bytes, no escape or rune
// broken.
func clip(s []byte, n int) []byte {
	if len(s) <= n {
		return s
	}
	end := 0
	for {
		size := 1
		switch {
		case s[end] == '\\' && s[end+1] == 'u':
			size = len(`\u0000`)
			if d := s[end+2] | 0x20; d == 'd' && s[end+3] >= '8' { // the first half of a surrogate pair
				size *= 2
			}
		case s[end] == '\\':
			size = 2
		case s[end] >= utf8.RuneSelf:
			_, size = utf8.DecodeRune(s[end:])
		}
		if end+size > n {
			return s[:end]
		}
		end += size
	}
}

// direction fills v with a vector of length 1.
func (d *draw) direction(v []float32) {
	var sum float64
	for i := range v {
		x := 2*d.share() - 1
		sum += float64(x * x) // the conversion keeps machines from fusing the two, which rounds otherwise
		v[i] = float32(x)
	}
	scale := 1 / math.Sqrt(max(sum, math.SmallestNonzeroFloat32))
	for i := range v {
		v[i] = float32(float64(v[i]) * scale)
	}
}

func appendFloats(b []byte, v []float32) []byte {
	b = append(b, '[')
	for i, x := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendFloat(b, float64(x), 'g', -1, 32)
	}
	return append(b, ']')
}

// appendBase64 appends what OpenAI's own clients ask for: the floats' bytes, the lowest first.
func appendBase64(b []byte, v []float32) []byte {
	raw := make([]byte, 0, 4*len(v))
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, raw)
	return append(b, '"')
}
