package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 10 << 20

// LookupUser resolves name (user, uid, user:group, uid:gid and mixtures; OCI
// image config, "User") in the root filesystem. A number that /etc/passwd does
// not have is taken as it is, with group 0; a name must exist:
// errdefs.ErrNotFound. The additional groups are the primary one alone; see
// AdditionalGroups.
func LookupUser(root *Rootfs, name string) (specs.User, error) {
	userPart, groupPart, hasGroup := strings.Cut(name, ":")
	if strings.Contains(groupPart, ":") {
		return specs.User{}, fmt.Errorf("user %q has more than one colon, want user[:group]: %w", name, errdefs.ErrInvalidArgument)
	}
	uid, userIsID, err := parseID("uid", userPart)
	if err != nil {
		return specs.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	gid, groupIsID, err := parseID("gid", groupPart)
	if err != nil {
		return specs.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	// A number with a group needs no look into /etc/passwd.
	if !userIsID || !hasGroup {
		found, err := findUser(root, func(u user.User) bool {
			return userIsID && u.Uid == int(uid) || !userIsID && u.Name == userPart
		})
		switch {
		case err == nil:
			if uid, err = checkID("uid", found.Uid); err == nil && !hasGroup {
				gid, err = checkID("gid", found.Gid)
			}
			if err != nil {
				return specs.User{}, fmt.Errorf("user %q in the image's /etc/passwd: %w", userPart, err)
			}
		case userIsID && isMissing(err):
		default:
			return specs.User{}, fmt.Errorf("looking up user %q in the image: %w", userPart, err)
		}
	}
	if hasGroup && !groupIsID {
		groups, err := readGroups(root, func(g user.Group) bool { return g.Name == groupPart })
		if err != nil {
			return specs.User{}, fmt.Errorf("looking up group %q in the image: %w", groupPart, err)
		}
		if len(groups) == 0 {
			return specs.User{}, fmt.Errorf("group %q is not in the image's /etc/group: %w", groupPart, errdefs.ErrNotFound)
		}
		if gid, err = checkID("gid", groups[0].Gid); err != nil {
			return specs.User{}, fmt.Errorf("group %q in the image's /etc/group: %w", groupPart, err)
		}
	}
	return specs.User{UID: uid, GID: gid, AdditionalGids: []uint32{gid}}, nil
}

// AdditionalGroups sets u.AdditionalGids to the groups of /etc/group that list
// who, a user's name or uid, and u's primary group. A missing file, or a uid
// that /etc/passwd does not have, adds none.
func AdditionalGroups(root *Rootfs, u *specs.User, who string) error {
	u.AdditionalGids = []uint32{u.GID}
	if uid, err := strconv.Atoi(who); err == nil {
		found, err := findUser(root, func(u user.User) bool { return u.Uid == uid })
		if isMissing(err) {
			return nil
		}
		if err != nil {
			return err
		}
		who = found.Name
	}
	groups, err := readGroups(root, func(g user.Group) bool { return g.Name != who && slices.Contains(g.List, who) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var gids []uint32
	for _, g := range groups {
		gid, err := checkID("gid", g.Gid)
		if err != nil {
			return fmt.Errorf("group %q in the image's /etc/group: %w", g.Name, err)
		}
		gids = append(gids, gid)
	}
	if !slices.Contains(gids, u.GID) {
		gids = append([]uint32{u.GID}, gids...)
	}
	u.AdditionalGids = gids
	return nil
}

// parseID returns ok false for what is not a number. IDs above MaxInt32 are
// refused: runc does not take them.
func parseID(what, s string) (id uint32, ok bool, err error) {
	n, err := strconv.Atoi(s)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, false, outOfRange(what, s)
	case err != nil:
		return 0, false, nil
	}
	id, err = checkID(what, n)
	return id, err == nil, err
}

// checkID refuses what would be another ID once it is cut to 32 bits: 1<<32 is not root.
func checkID(what string, n int) (uint32, error) {
	if n < 0 || n > math.MaxInt32 {
		return 0, outOfRange(what, strconv.Itoa(n))
	}
	return uint32(n), nil
}

func outOfRange(what, id string) error {
	return fmt.Errorf("%s %s is out of range, it must be between 0 and %d: %w", what, id, math.MaxInt32, errdefs.ErrOutOfRange)
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errdefs.ErrNotFound)
}

func findUser(root *Rootfs, match func(user.User) bool) (user.User, error) {
	b, err := root.ReadFile("etc/passwd", maxUserFile)
	if err != nil {
		return user.User{}, err
	}
	users, err := user.ParsePasswdFilter(bytes.NewReader(b), match)
	if err != nil {
		return user.User{}, fmt.Errorf("parsing /etc/passwd of the image: %w", err)
	}
	if len(users) == 0 {
		return user.User{}, fmt.Errorf("it is not in the image's /etc/passwd: %w", errdefs.ErrNotFound)
	}
	return users[0], nil
}

func readGroups(root *Rootfs, match func(user.Group) bool) ([]user.Group, error) {
	b, err := root.ReadFile("etc/group", maxUserFile)
	if err != nil {
		return nil, err
	}
	groups, err := user.ParseGroupFilter(bytes.NewReader(b), match)
	if err != nil {
		return nil, fmt.Errorf("parsing /etc/group of the image: %w", err)
	}
	return groups, nil
}
