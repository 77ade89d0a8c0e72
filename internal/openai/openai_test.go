package openai

import (
	"strings"
	"testing"
)

// TestMarshalZero pins that no field is ever left out, whatever is unset.
func TestMarshalZero(t *testing.T) {
	for _, tt := range []struct {
		value any
		want  string
	}{
		{Batch{}, `{"id":"","object":"","endpoint":"","model":null,"errors":null,"input_file_id":"","completion_window":"","status":"",` +
			`"output_file_id":null,"error_file_id":null,"created_at":0,"in_progress_at":null,"expires_at":null,"finalizing_at":null,` +
			`"completed_at":null,"failed_at":null,"expired_at":null,"cancelling_at":null,"cancelled_at":null,` +
			`"request_counts":{"total":0,"completed":0,"failed":0},"usage":null,"metadata":null}`},
		{BatchErrors{}, `{"object":"","data":[]}`},
		{BatchError{}, `{"code":"","message":"","param":null,"line":null}`},
		{Usage{}, `{"input_tokens":0,"input_tokens_details":{"cached_tokens":0},"output_tokens":0,` +
			`"output_tokens_details":{"reasoning_tokens":0},"total_tokens":0}`},
		{File{}, `{"id":"","object":"","bytes":0,"created_at":0,"expires_at":null,"filename":"","purpose":"","status":"","status_details":null}`},
		{List[File]{}, `{"object":"","data":[],"first_id":null,"last_id":null,"has_more":false}`},
		{ModelList{}, `{"object":"","data":[]}`},
		{Model{}, `{"id":"","object":"","created":0,"owned_by":"","shutdown_date":null}`},
		{ErrorResponse{}, `{"error":{"message":"","type":"","param":null,"code":null}}`},
		{Upload{}, `{"id":"","object":"","bytes":0,"created_at":0,"filename":"","purpose":"","status":"","expires_at":0,"file":null}`},
		{UploadPart{}, `{"id":"","object":"","created_at":0,"upload_id":""}`},
		{CreateUpload{}, `{"filename":"","purpose":"","bytes":0,"mime_type":""}`},
		{CompleteUpload{}, `{"part_ids":[]}`},
		{CreateBatch{}, `{"input_file_id":"","endpoint":"","completion_window":""}`},
	} {
		got, err := Marshal(tt.value)
		if err != nil {
			t.Errorf("Marshal(%T): %v", tt.value, err)
		}
		if string(got) != tt.want {
			t.Errorf("Marshal(%T):\ngot  %s\nwant %s", tt.value, got, tt.want)
		}
	}
}

func TestMarshalText(t *testing.T) {
	const want = `{"b":"<\u0000>","é":"a` + "\ufffd" + `&"}`
	for range 8 { // maps come in random order
		got, err := Marshal(map[string]string{"é": "a\xff&", "b": "<\x00>"})
		if err != nil || string(got) != want {
			t.Fatalf("got %s, %v; want %s", got, err, want)
		}
	}
}

func TestNewList(t *testing.T) {
	self := func(s string) string { return strings.ToUpper(s) }
	l := NewList([]string{"a", "b", "c"}, self, true)
	if *l.FirstID != "A" || *l.LastID != "C" || !l.HasMore || l.Object != "list" {
		t.Errorf("page of three: %+v", l)
	}
	if l := NewList(nil, self, false); l.FirstID != nil || l.LastID != nil || l.HasMore {
		t.Errorf("empty page: %+v", l)
	}
}
