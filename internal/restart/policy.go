package restart

import (
	"fmt"
	"strconv"
	"strings"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

// Labels of a container, with containerd's names; nerdctl sets them.
const (
	// StatusLabel is what the task is to be: "running" or "stopped". Without it a
	// container is none of this package's business.
	StatusLabel = "containerd.io/restart.status"
	// PolicyLabel is a policy, see parsePolicy.
	PolicyLabel = "containerd.io/restart.policy"
	// CountLabel counts the restarts so far, in decimal.
	CountLabel = "containerd.io/restart.count"
	// StoppedLabel is true when a person has stopped the container.
	StoppedLabel = "containerd.io/restart.explicitly-stopped"
	// LogLabel is a URI for the output of a task that is started here.
	LogLabel = "containerd.io/restart.loguri"
)

// Policies are the names of all policies, as introspection reports them.
func Policies() []string { return []string{"no", "always", "on-failure", "unless-stopped"} }

// policy is when a task that has ended is started again.
type policy struct {
	name string
	// retries bounds the restarts of on-failure, 0 for no bound.
	retries int
}

// parsePolicy reads "no", "always" (also the empty string), "unless-stopped",
// "on-failure" and "on-failure:<number>".
func parsePolicy(s string) (policy, error) {
	name, count, counted := strings.Cut(s, ":")
	switch name {
	case "":
		name = "always"
	case "no", "always", "unless-stopped":
	case "on-failure":
		if !counted {
			return policy{name: name}, nil
		}
		n, err := strconv.Atoi(count)
		if err != nil {
			return policy{}, fmt.Errorf("restart policy %q: %q is no number of retries: %w", s, count, errdefs.ErrInvalidArgument)
		}
		return policy{name, n}, nil
	default:
		return policy{}, fmt.Errorf("restart policy %q is none of no, always, unless-stopped and on-failure[:retries]: %w", s, errdefs.ErrInvalidArgument)
	}
	if counted {
		return policy{}, fmt.Errorf("restart policy %q: only on-failure has a number of retries: %w", s, errdefs.ErrInvalidArgument)
	}
	return policy{name: name}, nil
}

// goal is what the monitor has to do about a container.
type goal uint8

const (
	leave goal = iota
	run        // (re)start the task
	stop       // end and remove the task
)

// aim tells what the labels of a container ask for, given its task: nil when it
// has none, with the exit status that was seen last when known.
func aim(labels map[string]string, task *object.Process, exit uint32) (goal, error) {
	switch labels[StatusLabel] {
	case "stopped":
		if task != nil && task.Status != object.TaskStopped {
			return stop, nil
		}
		return leave, nil
	case "running":
	default:
		return leave, nil
	}
	if task != nil {
		switch task.Status {
		case object.TaskRunning, object.TaskPaused, object.TaskPausing, object.TaskUnknown:
			return leave, nil
		case object.TaskStopped:
			exit = task.Exit.Status
		}
	}
	if stopped, _ := strconv.ParseBool(labels[StoppedLabel]); stopped {
		return leave, nil
	}
	p, err := parsePolicy(labels[PolicyLabel])
	if err != nil {
		return leave, err
	}
	switch p.name {
	case "always", "unless-stopped":
		return run, nil
	case "on-failure":
		done, err := restarts(labels)
		if err != nil {
			return leave, err
		}
		if exit != 0 && (p.retries == 0 || done < p.retries) {
			return run, nil
		}
	}
	return leave, nil
}

// restarts reads the count of restarts so far.
func restarts(labels map[string]string) (int, error) {
	s := labels[CountLabel]
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("label %s=%q is no number: %w", CountLabel, s, errdefs.ErrInvalidArgument)
	}
	return n, nil
}
