package object

import "time"

// SnapshotKind tells what may be done with a snapshot. The numbers are those
// of the records on disk.
type SnapshotKind uint8

const (
	SnapshotUnknown   SnapshotKind = iota
	SnapshotView                   // read-only mounts, never committed
	SnapshotActive                 // writable, until committed or removed
	SnapshotCommitted              // immutable, may be a parent
)

func (k SnapshotKind) String() string {
	switch k {
	case SnapshotView:
		return "View"
	case SnapshotActive:
		return "Active"
	case SnapshotCommitted:
		return "Committed"
	default:
		return "Unknown"
	}
}

// SnapshotInfo describes a snapshot. Name is the key of an active snapshot or
// view and the name of a committed one; they share one name space.
type SnapshotInfo struct {
	Kind    SnapshotKind
	Name    string
	Parent  string
	Labels  map[string]string
	Created time.Time
	Updated time.Time
}

// SnapshotUsage is what a snapshot itself takes, its parents not counted.
type SnapshotUsage struct {
	Inodes int64
	// Size in bytes, as the blocks on disk count.
	Size int64
}
