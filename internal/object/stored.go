package object

import "time"

// StoredContainer is a container as its record holds it, for those who pass many
// on without looking into them. The bytes belong to the store, which says how
// long they are valid; what is absent is empty.
type StoredContainer struct {
	ID, Image, Snapshotter, SnapshotKey, SandboxID, RuntimeName []byte
	// Spec and RuntimeOptions are encoded as by Any.MarshalBinary; nil when there
	// is none.
	Spec, RuntimeOptions []byte
	Labels               []StoredPair
	Extensions           []StoredPair // their values are encoded as by Any.MarshalBinary
	CreatedAt, UpdatedAt time.Time
}

// StoredPair is an entry of a map.
type StoredPair struct{ Key, Value []byte }
