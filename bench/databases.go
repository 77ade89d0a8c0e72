package main

import "context"

func databases(ctx context.Context, e *env) error { return nil }
