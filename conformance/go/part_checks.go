package main

import (
	"crypto/rand"
	"fmt"
	"strings"
	"sync"

	"github.com/openai/openai-go/v3"
)

// begin begins an upload of content in parts.
func begin(content string) *openai.Upload { return must(ai.Uploads.New(ctx, uploadOf(content))) }

func uploadOf(content string) openai.UploadNewParams {
	return openai.UploadNewParams{
		Bytes: int64(len(content)), Filename: "in.jsonl", MimeType: "application/jsonl", Purpose: openai.FilePurposeBatch,
	}
}

func part(uploadID, data string) (*openai.UploadPart, error) {
	return ai.Uploads.Parts.New(ctx, uploadID, openai.UploadPartNewParams{Data: strings.NewReader(data)})
}

func complete(uploadID string, partIDs ...string) (*openai.Upload, error) {
	return ai.Uploads.Complete(ctx, uploadID, openai.UploadCompleteParams{PartIDs: partIDs})
}

// upload400 wants an upload's completion to be refused.
func upload400(message string) func(*openai.Upload, error) {
	return refused[*openai.Upload](refusal{400, message, open, open})
}

// unknownUpload wants every call that names the upload to find nothing.
func unknownUpload(id string) {
	no := refusal{404, "No such Upload object: " + id, "", "upload_id"}
	refused[*openai.UploadPart](no)(part(id, "x"))
	refused[*openai.Upload](no)(complete(id, "part_nope"))
	refused[*openai.Upload](no)(ai.Uploads.Cancel(ctx, id))
}

var partChecks = []test{
	{"parts-order", func() {
		u := begin(sample)
		matches(u.ID, "^upload_.")
		equal(fmt.Sprint(u.Object, " ", u.Status, " ", u.Filename, " ", u.Purpose), "upload pending in.jsonl batch")
		equal(u.Bytes, int64(len(sample)))
		equal(u.ExpiresAt-u.CreatedAt, 3600)
		equal(nulls(u), "file")
		second := must(part(u.ID, sample[100:]))
		matches(second.ID, "^part_.")
		equal(nulls(second), "")
		equal(string(second.Object)+" "+second.UploadID, "upload.part "+u.ID)
		must(part(u.ID, "dropped"))
		u = must(complete(u.ID, must(part(u.ID, sample[:100])).ID, second.ID))
		equal(nulls(u)+nulls(&u.File), "status_details")
		equal(fmt.Sprint(u.Status, " ", u.File.Filename, " ", u.File.Bytes), fmt.Sprint("completed in.jsonl ", len(sample)))
		equal(content(u.File.ID), sample)
		equal(must(ai.Files.Get(ctx, u.File.ID)).RawJSON(), u.File.RawJSON())
	}},

	{"parts-parallel", func() {
		bytes := make([]byte, 4<<20)
		rand.Read(bytes)
		all := string(bytes)
		p := uploadOf(all)
		p.Filename, p.Purpose = "x.bin", openai.FilePurposeUserData
		u := must(ai.Uploads.New(ctx, p))
		var ids [8]string
		var errs [8]error
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				var sent *openai.UploadPart
				if sent, errs[i] = part(u.ID, all[i<<19:(i+1)<<19]); errs[i] == nil {
					ids[i] = sent.ID
				}
			})
		}
		wg.Wait()
		for _, err := range errs {
			check(err)
		}
		is(content(must(complete(u.ID, ids[:]...)).File.ID) == all, "other bytes came back")
	}},

	{"parts-chunked", func() { panic(lack("the SDK has no helper for it")) }},

	{"parts-md5", func() {
		u := begin(sample)
		p := openai.UploadCompleteParams{PartIDs: []string{must(part(u.ID, sample)).ID}, Md5: openai.String(hash("other"))}
		upload400("")(ai.Uploads.Complete(ctx, u.ID, p))
		p.Md5 = openai.String(hash(sample))
		equal(must(ai.Uploads.Complete(ctx, u.ID, p)).Status, "completed")
	}},

	{"parts-expiry", func() {
		p := uploadOf(sample)
		p.ExpiresAfter = openai.UploadNewParamsExpiresAfter{Seconds: 7200}
		u := must(ai.Uploads.New(ctx, p))
		f := must(complete(u.ID, must(part(u.ID, sample)).ID)).File
		equal(fmt.Sprint(u.ExpiresAt-u.CreatedAt, f.ExpiresAt-f.CreatedAt), "3600 7200")
	}},

	{"parts-cancel", func() {
		u := begin(sample)
		id := must(part(u.ID, sample)).ID
		equal(must(ai.Uploads.Cancel(ctx, u.ID)).Status, "cancelled")
		why := fmt.Sprintf("Upload %s is not pending; its status is 'cancelled'.", u.ID)
		refused[*openai.UploadPart](refusal{400, why, open, open})(part(u.ID, sample))
		upload400(why)(complete(u.ID, id))
	}},

	{"parts-repeat", func() {
		u := begin(sample)
		id := must(part(u.ID, sample)).ID
		equal(must(complete(u.ID, id)).RawJSON(), must(complete(u.ID, id)).RawJSON())
		why := fmt.Sprintf("Upload %s is not pending; its status is 'completed'.", u.ID)
		refused[*openai.UploadPart](refusal{400, why, open, open})(part(u.ID, sample))
	}},

	{"parts-refused", func() {
		unknownUpload("upload_nope")
		u := begin(sample)
		id := must(part(u.ID, sample[1:])).ID
		upload400(fmt.Sprintf("The total size of the parts (%d bytes) does not match the upload size (%d bytes).", len(sample)-1, len(sample)))(
			complete(u.ID, id))
		upload400("part_nope")(complete(u.ID, "part_nope"))
		upload400(id)(complete(u.ID, id, id))
	}},

	{"parts-batch", func() {
		u := begin(sample)
		u = must(complete(u.ID, must(part(u.ID, sample[:77])).ID, must(part(u.ID, sample[77:])).ID))
		equal(state(finish(must(ai.Batches.New(ctx, batchOf(u.File.ID))))), "completed 2+0 of 2")
	}},
}
