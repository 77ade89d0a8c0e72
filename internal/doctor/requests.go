package doctor

import (
	"crypto/sha256"
	"encoding/binary"
)

// A request is what is kept in memory of a line of an input.
type request struct {
	id   [16]byte // hash of its custom_id
	line uint32   // of the input, from 1
	// lane is what it shares with the requests that its result comes in order with: of a running
	// batch an index into patient.segments, or -1; else one into requests.models.
	lane int32
}

// requests are those of one batch, in the order of lines, to be found by their custom_id.
type requests struct {
	list   []request
	seen   []uint8  // results found of each, up to 255
	bodies [][]byte // nil unless somebody wants them
	models []string

	index    []uint32 // positions in list + 1, by hash, the next free place taken; its length is a power of two
	modelsBy map[string]int32
}

// reset forgets everything and makes room for about n requests, as far as that can be believed. The
// memory is used again.
func (t *requests) reset(n int64) *requests {
	n = min(max(n, 16), 2_000_000)
	if t.list = t.list[:0]; int64(cap(t.list)) < n {
		t.list, t.index = nil, nil // in this order, so that there are never two
		t.list = make([]request, 0, n)
	}
	t.seen, t.bodies, t.models, t.modelsBy = t.seen[:0], nil, nil, map[string]int32{}
	t.rehash()
	return t
}

func hashID(customID []byte) (h [16]byte) {
	sum := sha256.Sum256(customID)
	copy(h[:], sum[:])
	return h
}

// place returns where in the index the hash is, or would be.
func (t *requests) place(id [16]byte) int {
	mask := len(t.index) - 1
	i := int(binary.LittleEndian.Uint64(id[:])) & mask
	for t.index[i] != 0 && t.list[t.index[i]-1].id != id {
		i = (i + 1) & mask
	}
	return i
}

// find returns the position of the request with the hash, or -1.
func (t *requests) find(id [16]byte) int { return int(t.index[t.place(id)]) - 1 }

// add adds a request, and returns the position of another with the same custom_id, or -1.
func (t *requests) add(r request) (other int) {
	if (len(t.list)+1)*2 > len(t.index) {
		t.rehash()
	}
	i := t.place(r.id)
	other = int(t.index[i]) - 1
	t.list = append(t.list, r)
	if other < 0 {
		t.index[i] = uint32(len(t.list))
	}
	return other
}

// rehash makes the index large enough for the room that list has.
func (t *requests) rehash() {
	size := 64
	for size < 2*(max(cap(t.list), len(t.list)+1)) {
		size *= 2
	}
	if len(t.index) == size {
		clear(t.index)
	} else {
		t.index = make([]uint32, size)
	}
	for i := range t.list {
		if at := t.place(t.list[i].id); t.index[at] == 0 {
			t.index[at] = uint32(i + 1)
		}
	}
}

func (t *requests) model(name string) int32 {
	i, ok := t.modelsBy[name]
	if !ok {
		i = int32(len(t.models))
		t.models = append(t.models, name)
		t.modelsBy[name] = i
	}
	return i
}
