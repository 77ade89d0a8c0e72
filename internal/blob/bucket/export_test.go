package bucket

import "time"

// Impatient makes a Bucket wait for nothing longer than tests like to.
func Impatient(b *Bucket) {
	b.patience = patience{
		tries: 4, pause: 10 * time.Millisecond, call: time.Second, part: 2 * time.Second,
		unseen: 0, stall: 500 * time.Millisecond,
	}
}

// Expectant makes an impatient Bucket look for a blob for a while that is not there yet.
func Expectant(b *Bucket) {
	Impatient(b)
	b.patience.unseen = 2 * time.Second
}
