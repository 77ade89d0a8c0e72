package main

import (
	"fmt"
	"log/slog"
	"os"
)

// warnOpenFolder says so if others may look into the data folder, or worse. What we keep in it is
// for us alone, whatever the folder says; but who may write in it can put something else in its
// place. The folder's own mode is its owner's affair: there may be more in it, and a container's
// volumes have modes of their own.
func warnOpenFolder(dir string, log *slog.Logger) {
	fi, err := os.Stat(dir)
	if err != nil {
		return // whoever needs it will say more
	}
	const group, others = 0o020, 0o002
	switch mode := fi.Mode(); {
	case mode&(group|others) != 0 && mode&os.ModeSticky == 0:
		log.Warn("others may write in the data folder, and so replace what is in it: chmod 700 it, unless they are trusted", "data", dir, "mode", fmt.Sprintf("%04o", mode.Perm()))
	case mode&0o077 != 0:
		log.Info("others may see the names of files in the data folder, though not what is in them: chmod 700 it to keep them out", "data", dir, "mode", fmt.Sprintf("%04o", mode.Perm()))
	}
}
