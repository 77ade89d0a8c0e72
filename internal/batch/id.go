package batch

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// NewBatchID draws the id of a batch created at now. Like OpenAI's it shows its age in its first
// eight digits (contract B-01).
func NewBatchID(now time.Time) string {
	var raw [16]byte
	rand.Read(raw[:])
	binary.BigEndian.PutUint32(raw[:4], uint32(now.Unix()))
	return "batch_" + hex.EncodeToString(raw[:])
}

// NewFileID draws the id of a file: 22 base62 digits (contract §10.1).
func NewFileID() string { return "file-" + base62(22) }

// NewToken draws a value that no other claim, node or key has.
func NewToken() string { return base62(22) }

// NewCallID draws the request_id of a call whose upstream gave it none: 32 hexadecimal digits
// (contract O-02).
func NewCallID() string {
	var raw [16]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

func base62(n int) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	out := make([]byte, 0, n)
	var raw [32]byte
	for len(out) < n {
		rand.Read(raw[:])
		for _, b := range raw {
			if b &= 63; int(b) < len(digits) && len(out) < n { // 62 and 63 would bias the rest
				out = append(out, digits[b])
			}
		}
	}
	return string(out)
}

// appendRequestID appends the id of the result of one line of a batch. It is a function of both,
// so that sealing a segment twice writes the same bytes (contract O-02).
func appendRequestID(dst []byte, batchID string, line int64) []byte {
	var buf [64]byte
	raw := append(buf[:0], batchID...)
	raw = binary.BigEndian.AppendUint64(raw, uint64(line))
	sum := sha256.Sum256(raw)
	dst = append(dst, "batch_req_"...)
	return hex.AppendEncode(dst, sum[:16])
}
