package live

// Mount is one mount(2), or one that a mount handler understands.
type Mount struct {
	Type    string
	Source  string
	Target  string
	Options []string
}
