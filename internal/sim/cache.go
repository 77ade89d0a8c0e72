package sim

import (
	"container/list"
	"encoding/binary"
	"hash/maphash"
	"sync"
)

const (
	blockTokens = 16
	blockBytes  = 4 * blockTokens
)

// A prefixCache remembers the beginnings of prompts as vLLM does: in blocks of 16 tokens, each
// known by its own bytes and all before it, the least recently used forgotten first.
type prefixCache struct {
	limit int
	seed  maphash.Seed

	mu     sync.Mutex
	recent list.List // of uint64, the most recently used first
	blocks map[uint64]*list.Element
}

func newPrefixCache(limit int) *prefixCache {
	return &prefixCache{limit: limit, seed: maphash.MakeSeed(), blocks: make(map[uint64]*list.Element)}
}

// chain appends to dst a hash for each whole block of a prompt to model, as many as fit the cache.
func (p *prefixCache) chain(dst []uint64, model, prompt []byte) []uint64 {
	var block [8 + blockBytes]byte
	hash := maphash.Bytes(p.seed, model)
	for len(prompt) >= blockBytes && len(dst) < p.limit {
		binary.LittleEndian.PutUint64(block[:8], hash)
		copy(block[8:], prompt)
		hash = maphash.Bytes(p.seed, block[:])
		dst = append(dst, hash)
		prompt = prompt[blockBytes:]
	}
	return dst
}

// visit returns how many blocks at the beginning of a prompt are cached, and caches all of them.
func (p *prefixCache) visit(chain []uint64) (hits int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for hits < len(chain) && p.blocks[chain[hits]] != nil {
		hits++
	}
	// From the last to the first, so that the end of a prompt is forgotten before its beginning:
	// without its beginning a block is of no use.
	for i := len(chain) - 1; i >= 0; i-- {
		if e := p.blocks[chain[i]]; e != nil {
			p.recent.MoveToFront(e)
			continue
		}
		if p.recent.Len() == p.limit {
			delete(p.blocks, p.recent.Remove(p.recent.Back()).(uint64))
		}
		p.blocks[chain[i]] = p.recent.PushFront(chain[i])
	}
	return hits
}

// cachedTokens returns how many of a prompt's tokens its cached blocks hold: whole blocks, and
// never the last token, which an engine always computes. The blocks are of the prompt as it stands
// in the body, which has more bytes than its text.
func cachedTokens(promptTokens, hits, promptBytes int) int {
	if hits == 0 {
		return 0
	}
	cached := min(promptTokens-1, promptTokens*hits*blockBytes/promptBytes)
	return cached / blockTokens * blockTokens
}
