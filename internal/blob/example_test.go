package blob_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// A file of two parts, read across their border.
func ExampleConcat() {
	ctx := context.Background()
	folder, err := os.MkdirTemp("", "blobs")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	blobs, err := blob.Open(folder)
	if err != nil {
		log.Fatal(err)
	}

	var file []batch.Part
	for _, line := range []string{"{\"custom_id\":\"a\"}\n", "{\"custom_id\":\"b\"}\n"} {
		key := blob.NewKey()
		w, err := blobs.Create(ctx, key)
		if err != nil {
			log.Fatal(err)
		}
		defer w.Abort()
		io.WriteString(w, line) // Commit tells
		size, err := w.Commit()
		if err != nil {
			log.Fatal(err)
		}
		file = append(file, batch.Part{Key: key, Bytes: size})
	}

	r := blob.Concat(ctx, blobs, file, 13, 14)
	defer r.Close()
	content, err := io.ReadAll(r)
	fmt.Printf("%q %v\n", content, err)
	// Output: "\"a\"}\n{\"custom_" <nil>
}
