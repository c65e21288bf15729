//go:build !failpoints

package failpoint

// Hit does nothing and is inlined away.
func Hit(string) error { return nil }
