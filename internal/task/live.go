package task

// Ref names a task.
type Ref struct{ Namespace, ID string }

// Live names the tasks that have a shim, without asking it.
func (m *Manager) Live() []Ref {
	m.mu.Lock()
	defer m.mu.Unlock()
	refs := make([]Ref, 0, len(m.tasks))
	for k, t := range m.tasks {
		if t.phase == alive {
			refs = append(refs, Ref{k.namespace, k.id})
		}
	}
	return refs
}
