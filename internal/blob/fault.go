package blob

// An Op is a step of a [Dir] that changes the disk.
type Op string

// The steps of Open, of a commit in their order, and Delete's.
const (
	OpPrepare Op = "prepare" // make a folder that holds all blobs, and fsync its parent
	OpTidy    Op = "tidy"    // remove a temporary file that a crash left
	OpCreate  Op = "create"  // make the temporary file
	OpWrite   Op = "write"   // write a buffer to it
	OpSync    Op = "sync"    // fsync it
	OpMkdir   Op = "mkdir"   // make the key's sub-folder, once, and fsync its parent
	OpLink    Op = "link"    // give the file its key for a name, which makes the blob visible
	OpSyncDir Op = "syncdir" // fsync the sub-folder
	OpUnlink  Op = "unlink"  // take away the temporary name
	OpDelete  Op = "delete"  // remove a blob
	OpUndo    Op = "undo"    // remove a blob whose OpSyncDir failed
)

// A Fault decides the fate of a step in a test: with an error the step's caller is told that error,
// and apply says whether the step took effect all the same. Without, the step runs undisturbed.
type Fault func(op Op, key string) (apply bool, err error)

// WithFault lets f decide about every step of a [Dir].
func WithFault(f Fault) Option {
	return func(d *Dir) { d.fault = f }
}

// Do runs one step, as f allows. A nil Fault allows all.
func (f Fault) Do(op Op, key string, do func() error) error {
	if f == nil {
		return do()
	}
	apply, fail := f(op, key)
	if fail == nil || apply {
		if err := do(); err != nil {
			return err
		}
	}
	return fail
}

// step runs one step, as d.fault allows.
func (d *Dir) step(op Op, key string, do func() error) error { return d.fault.Do(op, key, do) }
