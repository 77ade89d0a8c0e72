package sim

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
)

// A digest names a body: the first half of its SHA-256.
type digest [16]byte

func digestOf(body []byte) digest {
	sum := sha256.Sum256(body)
	return digest(sum[:16])
}

// What a draw is for. The numbers from 1 up are attempts, whose faults are drawn.
const (
	forAnswer = 0
	forTiming = math.MaxUint64
)

// A draw is a sequence of numbers that only its origin decides: SplitMix64, which is small, fast
// and the same on every machine and in every version of Go.
type draw uint64

// newDraw returns the draw for one purpose around one body.
func newDraw(seed uint64, of digest, purpose uint64) draw {
	d := draw(seed)
	d = draw(d.next() ^ binary.LittleEndian.Uint64(of[:8]))
	d = draw(d.next() ^ binary.LittleEndian.Uint64(of[8:]))
	return draw(d.next() ^ purpose)
}

func (d *draw) next() uint64 {
	*d += 0x9e3779b97f4a7c15
	z := uint64(*d)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// share returns a number from 0 to below 1.
func (d *draw) share() float64 { return float64(d.next()>>11) / (1 << 53) }

// normal returns a number of the standard normal distribution (Box and Muller's way).
func (d *draw) normal() float64 {
	return math.Sqrt(-2*math.Log(1-d.share())) * math.Cos(2*math.Pi*d.share())
}

// length returns a length of the log-normal distribution that median and p99 describe, at least 1.
func (d *draw) length(median, p99 int) int {
	const z99 = 2.3263478740408408 // the 99th percentile of the standard normal distribution
	sigma := math.Log(float64(p99)/float64(median)) / z99
	return int(min(max(1, math.Round(float64(median)*math.Exp(sigma*d.normal()))), math.MaxInt32))
}
