package api

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net/http"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/openai"
)

// uploads keeps files that come in parts (contract §11). What fails with batch.NoUpload for an
// unknown upload does so for another project's.
type uploads interface {
	CreateUpload(ctx context.Context, u batch.Upload) error
	// Upload returns an upload, or batch.NoUpload.
	Upload(ctx context.Context, project, id string) (batch.Upload, error)
	// AddPart adds a part whose blob was reserved and is written, or fails with batch.NoUpload or
	// with what batch.Upload.CheckPending says.
	AddPart(ctx context.Context, project string, p batch.UploadPart) error
	// UploadParts returns the parts with the given ids, in their order, or batch.NoUploadPart for
	// one that the upload does not have. A completed upload has none any more.
	UploadParts(ctx context.Context, project, id string, ids []string) ([]batch.Part, error)
	// CompleteUpload does what batch.Upload.Complete says, and nothing if the upload is completed
	// by c already. It returns the upload as it is then.
	CompleteUpload(ctx context.Context, project, id string, c batch.Completion) (batch.Upload, error)
	// CancelUpload does what batch.Upload.Cancel says and returns the upload as it is then.
	CancelUpload(ctx context.Context, project, id string) (batch.Upload, error)
}

func (s *server) createUpload(ctx context.Context, p batch.Project, in batch.CreateUploadParams) (openai.Upload, error) {
	in.Project = p.ID
	u, err := batch.NewUpload(in, s.Now())
	if err != nil {
		return openai.Upload{}, err
	}
	if err := s.Store.CreateUpload(ctx, u); err != nil {
		return openai.Upload{}, fmt.Errorf("create upload: %w", err)
	}
	return s.uploadObject(u), nil
}

// addPart takes a part, in the steps of [server.upload]: a part is a blob that an upload names for
// the time being. That the upload takes parts is asked before the bytes come, to spare the client
// from sending them, and again when the part is added.
func (s *server) addPart(w *response, r *http.Request, p batch.Project) error {
	id := clean(r.PathValue("id"))
	u, err := s.Store.Upload(r.Context(), p.ID, id)
	if err != nil {
		return err
	}
	if err := u.CheckPending(s.Now()); err != nil {
		return err
	}
	f := s.newForm("data", batch.MaxUploadPart, batch.ErrPartTooLarge)
	defer f.abort() // does nothing once committed
	if err := f.read(w, r); err != nil {
		return err
	}
	if f.blob == nil {
		return batch.Missing("data")
	}
	if err := f.commit(); err != nil {
		return err
	}
	part := batch.NewUploadPart(id, batch.Part{Key: f.key, Bytes: f.size}, s.Now())
	if err := s.Store.AddPart(r.Context(), p.ID, part); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireUploadPart(part))
}

// A completion is the wish to make a file of an upload.
type completion struct {
	upload string
	batch.Completion
}

// completeUpload looks at the bytes before it asks for the file, in no transaction: they do not
// change. What may change, whether the upload is pending and has the parts, is asked again by the
// store.
func (s *server) completeUpload(ctx context.Context, p batch.Project, in completion) (openai.Upload, error) {
	// First the parts: an upload that is completed after that is found completed below.
	parts, noParts := s.Store.UploadParts(ctx, p.ID, in.upload, in.PartIDs)
	u, err := s.Store.Upload(ctx, p.ID, in.upload)
	if err != nil {
		return openai.Upload{}, err
	}
	if u.CompletedBy(in.Completion) {
		return s.uploadObject(u), nil
	}
	if err := u.CheckPending(s.Now()); err != nil {
		return openai.Upload{}, err
	}
	if noParts != nil {
		return openai.Upload{}, noParts
	}
	if err := s.checkUpload(ctx, u, parts, in.Completion); err != nil {
		return openai.Upload{}, err
	}
	u, err = s.Store.CompleteUpload(ctx, p.ID, in.upload, in.Completion)
	if err != nil {
		return openai.Upload{}, err
	}
	return s.uploadObject(u), nil
}

// checkUpload says whether parts can become the file that u was to be. It reads them only if that
// is needed, and no further than that.
func (s *server) checkUpload(ctx context.Context, u batch.Upload, parts []batch.Part, c batch.Completion) error {
	if err := c.Check(); err != nil {
		return err
	}
	if err := u.CheckSize(parts); err != nil {
		return err
	}
	if err := u.CheckPolicy(s.Policy); err != nil {
		return err
	}
	if c.MD5 == "" && u.Purpose != batch.PurposeBatch {
		return nil
	}
	src := blob.Concat(ctx, s.Blobs, parts, 0, -1)
	defer src.Close()
	var first firstLine
	sum := md5.New()
	buf := make([]byte, 128<<10)
	for c.MD5 != "" || !first.full {
		n, err := src.Read(buf)
		first.Write(buf[:n])
		sum.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read upload %s: %w", u.ID, err)
		}
	}
	if err := c.CheckMD5([md5.Size]byte(sum.Sum(nil))); err != nil {
		return err
	}
	return u.CheckFirstLine(first.text, first.cut)
}

func (s *server) cancelUpload(ctx context.Context, p batch.Project, id string) (openai.Upload, error) {
	u, err := s.Store.CancelUpload(ctx, p.ID, id)
	if err != nil {
		return openai.Upload{}, err
	}
	return s.uploadObject(u), nil
}

// decodeCreateUpload reads the body of POST /v1/uploads (contract UP-01).
func decodeCreateUpload(r *http.Request) (batch.CreateUploadParams, error) {
	o, err := readObject(r)
	if err != nil {
		return batch.CreateUploadParams{}, err
	}
	p := batch.CreateUploadParams{
		Filename: o.text("filename"),
		Purpose:  o.text("purpose"),
		Bytes:    o.integer("bytes"),
		MIMEType: o.text("mime_type"),
	}
	if e := o.object("expires_after"); e != nil {
		p.ExpiresAfter = &batch.ExpiresAfter{Anchor: e.text("anchor"), Seconds: e.integer("seconds")}
	}
	return p, *o.err
}

// decodeCompletion reads the body of POST /v1/uploads/{id}/complete (contract UP-04).
func decodeCompletion(r *http.Request) (completion, error) {
	o, err := readObject(r)
	if err != nil {
		return completion{}, err
	}
	c := completion{upload: clean(r.PathValue("id"))}
	c.PartIDs = o.list("part_ids")
	c.MD5 = o.text("md5")
	if *o.err == nil && c.PartIDs == nil {
		return completion{}, batch.Missing("part_ids")
	}
	return c, *o.err
}

func (s *server) uploadObject(u batch.Upload) openai.Upload { return wireUpload(u, s.Now()) }

// wireUpload shows an upload as it stands at now.
func wireUpload(u batch.Upload, now time.Time) openai.Upload {
	w := openai.Upload{
		ID: u.ID, Object: "upload", Bytes: u.Bytes, CreatedAt: u.CreatedAt.Unix(),
		Filename: u.Filename, Purpose: u.Purpose, Status: string(u.StatusAt(now)), ExpiresAt: u.ExpiresAt.Unix(),
	}
	if f := u.File(); f != nil {
		file := wireFile(*f)
		w.File = &file
	}
	return w
}

func wireUploadPart(p batch.UploadPart) openai.UploadPart {
	return openai.UploadPart{ID: p.ID, Object: "upload.part", CreatedAt: p.CreatedAt.Unix(), UploadID: p.UploadID}
}
