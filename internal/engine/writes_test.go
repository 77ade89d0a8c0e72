package engine_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// writes lists every kind of write that there is in the code: methods of the store that come to
// run a transaction, and steps of a blob on the disk. So what is written tomorrow is in the list.
// It fails the test where something is written past the place where it could be struck.
func writes(t *testing.T) (points []string) {
	calls := map[string][]string{} // in package store: which functions a function calls
	for _, f := range functions(t, "../store") {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if n.Sel.Name == "write" && !slices.Contains([]string{"open", "openSQLite", "close", "once"}, f.Name.Name) {
					t.Errorf("store.%s uses the database without Store.tx", f.Name.Name)
				}
			case *ast.CallExpr:
				switch fun := n.Fun.(type) {
				case *ast.Ident:
					calls[f.Name.Name] = append(calls[f.Name.Name], fun.Name)
				case *ast.SelectorExpr:
					if x, ok := fun.X.(*ast.Ident); ok && x.Name == "s" { // the Store
						calls[f.Name.Name] = append(calls[f.Name.Name], fun.Sel.Name)
					}
				}
			}
			return true
		})
	}
	writers := map[string]bool{"tx": true}
	for known := 0; known < len(writers); {
		known = len(writers)
		for name, called := range calls {
			if slices.ContainsFunc(called, func(c string) bool { return writers[c] }) {
				writers[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(writers)) {
		if ast.IsExported(name) {
			points = append(points, name)
		}
	}

	// What changes a disk, and the functions of package blob that are steps or part of one.
	changes := []string{"CreateTemp", "Link", "Mkdir", "MkdirAll", "OpenFile", "Remove", "RemoveAll", "Rename", "Sync", "Truncate", "WriteFile"}
	steps := []string{"mkdirAll", "syncDir"}
	for _, f := range functions(t, "../blob") {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			switch {
			case ok && sel.Sel.Name == "step":
				return false // what is inside can be struck
			case ok && slices.Contains(changes, sel.Sel.Name) && !slices.Contains(steps, f.Name.Name):
				t.Errorf("blob.%s changes the disk with %s in no step", f.Name.Name, sel.Sel.Name)
			}
			return true
		})
	}
	for _, file := range files(t, "../blob") {
		ast.Inspect(file, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 && strings.HasPrefix(v.Names[0].Name, "Op") {
				op, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				points = append(points, "blob "+op)
			}
			return true
		})
	}
	return points
}

// functions parses those of a package, tests aside.
func functions(t *testing.T, dir string) (list []*ast.FuncDecl) {
	for _, file := range files(t, dir) {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				list = append(list, f)
			}
		}
	}
	return list
}

func files(t *testing.T, dir string) (list []*ast.File) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no code in %s: %v", dir, err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, file)
	}
	return list
}
