package mount

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

// mkfs makes the image that is the mount's source, unless it is there.
func (t transformer) mkfs(ctx context.Context, m *object.Mount) error {
	spec, rest, err := parseMkfs(m.Options)
	if err != nil {
		return err
	}
	root, path, err := t.beneath(m.Source)
	if err != nil {
		return err
	}
	defer root.Close()
	m.Options = rest
	if _, err := root.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Differs from containerd: under another name until it is whole. A crash
	// leaves a file that goes with the directory it is in, never an image that
	// cannot be mounted.
	draft := path + ".mkfs-" + rand.Text()
	if err := spec.make(ctx, root, draft); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", m.Source, err), root.Remove(draft))
	}
	return root.Rename(draft, path)
}

// newFilesystem is the options X-containerd.mkfs.{fs,size,uuid}.
type newFilesystem struct {
	fs   string
	size int64 // bytes
	uuid string
}

func parseMkfs(options []string) (spec newFilesystem, rest []string, err error) {
	spec.fs = "ext4"
	for _, o := range options {
		word, ok := strings.CutPrefix(o, mkfsOption)
		if !ok {
			rest = append(rest, o)
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "fs":
			spec.fs = value
		case "uuid":
			spec.uuid = value
		case "size":
			if spec.size, err = ParseSize(value); err != nil {
				return spec, nil, fmt.Errorf("option %q: %w", o, err)
			}
		default:
			return spec, nil, fmt.Errorf("option %q is unknown: %w", o, errdefs.ErrInvalidArgument)
		}
	}
	if spec.size <= 0 {
		return spec, nil, fmt.Errorf("the option %ssize=<bytes> is missing: %w", mkfsOption, errdefs.ErrInvalidArgument)
	}
	return spec, rest, nil
}

func (n newFilesystem) command() (program string, args []string, err error) {
	switch n.fs {
	case "ext2", "ext3", "ext4":
		args = []string{"-q"}
		if n.uuid != "" {
			args = append(args, "-U", n.uuid)
		}
	case "xfs":
		args = []string{"-q", "-f"}
		if n.uuid != "" {
			args = append(args, "-m", "uuid="+n.uuid)
		}
	default:
		return "", nil, fmt.Errorf("filesystem %q: only ext2, ext3, ext4 and xfs can be made: %w", n.fs, errdefs.ErrInvalidArgument)
	}
	return "mkfs." + n.fs, args, nil
}

func (n newFilesystem) make(ctx context.Context, root *os.Root, path string) error {
	program, args, err := n.command()
	if err != nil {
		return err
	}
	f, err := root.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(n.size); err != nil {
		return err
	}
	// By descriptor: the path cannot lead anywhere else meanwhile.
	cmd := exec.CommandContext(ctx, program, append(args, "/proc/self/fd/3")...)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ParseSize reads a number of bytes with a unit of 1024s: "512", "64k", "10M",
// "2GiB". errdefs.ErrInvalidArgument otherwise.
func ParseSize(s string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number and a unit such as 64M: %w", s, errdefs.ErrInvalidArgument)
	unit := strings.TrimLeft(s, "0123456789.")
	number, err := strconv.ParseFloat(s[:len(s)-len(unit)], 64)
	if err != nil || number < 0 {
		return 0, bad
	}
	unit = strings.ToLower(strings.TrimSpace(unit))
	if unit != "b" && unit != "" {
		unit = strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
		shift := strings.Index("kmgtp", unit)
		if shift < 0 || len(unit) != 1 {
			return 0, bad
		}
		number *= float64(int64(1) << (10 * (shift + 1)))
	}
	if number >= 1<<62 {
		return 0, bad
	}
	return int64(number), nil
}
