package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Move is the note in a data folder that what it held is elsewhere now, or on its way: the file
// "moved". While it is there nobody opens the database, so that no batch is run in two places.
type Move struct {
	ID       string    `json:"id"`       // of the node that moves it: see Store.Received
	Database string    `json:"database"` // where to, without a password
	Blobs    string    `json:"blobs"`
	Began    time.Time `json:"began"`
	Done     bool      `json:"done"` // false: nobody knows whether it is there
}

func movePath(dir string) string { return filepath.Join(dir, "moved") }

// ReadMove returns the note in dir, or nil if there is none.
func ReadMove(dir string) (*Move, error) {
	data, err := os.ReadFile(movePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := &Move{}
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err != nil {
		return nil, fmt.Errorf("data folder %s was moved, by the file %s in it, which cannot be read: %w", dir, movePath(dir), err)
	}
	return m, nil
}

// Save puts the note into dir, durably, in place of a former one.
func (m Move) Save(dir string) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	temp := movePath(dir) + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(append(data, '\n'))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(temp, movePath(dir))
	}
	if err == nil {
		err = syncFolder(dir)
	}
	if err != nil {
		return fmt.Errorf("note in %s that it is moved: %w", dir, err)
	}
	return nil
}

// Drop takes the note out of dir: nothing was moved.
func (m Move) Drop(dir string) error {
	return errors.Join(os.Remove(movePath(dir)), syncFolder(dir))
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// refuseMoved fails for a data folder that was moved, and says where it went and how to undo that.
func refuseMoved(dir string) error {
	m, err := ReadMove(dir)
	if err != nil || m == nil {
		return err
	}
	where := fmt.Sprintf("--database %s --blobs %s", m.Database, m.Blobs)
	if m.Done {
		return fmt.Errorf("data folder %s was moved on %s: serve it with %s. To go back to what the folder held then, "+
			"see that nobody serves that any more, and remove the file %s", dir, m.Began.Format(time.DateOnly), where, movePath(dir))
	}
	return fmt.Errorf("data folder %s is being moved, and it is not known whether that came to its end: repeat the offpeak migrate that was to end in %s. "+
		"To stay here instead, see that nobody serves that, and remove the file %s", dir, where, movePath(dir))
}
