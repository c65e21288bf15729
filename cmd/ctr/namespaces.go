package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/cmd/ctr/output"

	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func namespacesCommand() *cli.Command {
	return &cli.Command{
		Name:    "namespaces",
		Aliases: []string{"namespace", "ns"},
		Usage:   "Manage namespaces",
		Commands: []*cli.Command{
			{
				Name: "create", Aliases: []string{"c"}, Usage: "Create a new namespace", ArgsUsage: "<name> [<key>=<value>]",
				Description: "create a new namespace. it must be unique", Action: withSession(createNamespaceAction),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List namespaces", ArgsUsage: "[flags]", Description: "list namespaces",
				Flags: []cli.Flag{quietFlag("Print only the namespace name"), formatFlag()}, Action: withSession(listNamespacesAction),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "Remove one or more namespaces", ArgsUsage: "<name> [<name>, ...]",
				Description: "remove one or more namespaces. for now, the namespace must be empty",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "cgroup", Aliases: []string{"c"}, Usage: "Delete the namespace's cgroup"}},
				Action:      withSession(removeNamespacesAction),
			},
			{
				Name: "label", Usage: "Set and clear labels for a namespace", ArgsUsage: "<name> [<key>=<value>, ...]",
				Description: "set and clear labels for a namespace. empty value clears the label", Action: withSession(labelNamespaceAction),
			},
		},
	}
}

func createNamespaceAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "a name"); err != nil {
		return err
	}
	_, err := namespacesapi.NewNamespacesClient(s).Create(ctx, &namespacesapi.CreateNamespaceRequest{
		Namespace: &namespacesapi.Namespace{Name: cmd.Args().First(), Labels: labelArgs(cmd.Args().Tail())},
	})
	return err
}

// namespaceView is a namespace as lists show it.
type namespaceView struct {
	Name   string
	Labels map[string]string
}

func listNamespacesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	resp, err := namespacesapi.NewNamespacesClient(s).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return err
	}
	rows := make([]namespaceView, len(resp.Namespaces))
	for i, ns := range resp.Namespaces {
		rows[i] = namespaceView{ns.Name, ns.Labels}
	}
	if cmd.Bool("quiet") {
		return output.Names(rows, func(ns namespaceView) string { return ns.Name })
	}
	return output.List(cmd.String("format"), rows, output.Narrow, "NAME\tLABELS\t", func(ns namespaceView) string {
		return fmt.Sprintf("%s\t%s\t", ns.Name, output.Labels(ns.Labels))
	})
}

func removeNamespacesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if !anyArgs(cmd, "name") {
		return nil
	}
	return forEach(cmd.Args().Slice(), "unable to delete", func(name string) error {
		_, err := namespacesapi.NewNamespacesClient(s).Delete(ctx, &namespacesapi.DeleteNamespaceRequest{Name: name})
		if err := ignoreNotFound(err); err != nil { // Compat: one that is not there is named, too
			return err
		}
		if cmd.Bool("cgroup") {
			if err := removeCgroups(name); err != nil {
				return err
			}
		}
		output.Line("%s", name)
		return nil
	})
}

// removeCgroups removes the cgroups of a namespace, which is gone: the parents of
// its containers' in every hierarchy. What still has a process in it is an error.
func removeCgroups(namespace string) error {
	// The daemon has answered for the name: it is no path.
	if namespace != filepath.Base(namespace) || namespace == ".." || namespace == "." {
		return invalid("--cgroup: %q is not a namespace", namespace)
	}
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(pattern + namespace) // of a constant pattern
		for _, dir := range dirs {
			if _, err := os.Stat(dir + "/cgroup.procs"); err != nil {
				continue // not a cgroup
			}
			errs = append(errs, removeCgroup(dir))
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	below, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range below {
		if d.IsDir() {
			if err := removeCgroup(filepath.Join(dir, d.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the namespace's cgroup: %w", err)
	}
	return nil
}

func labelNamespaceAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "a name"); err != nil {
		return err
	}
	labels := labelArgs(cmd.Args().Tail())
	if len(labels) == 0 {
		return nil
	}
	_, paths := labelChanges(labels)
	_, err := namespacesapi.NewNamespacesClient(s).Update(ctx, &namespacesapi.UpdateNamespaceRequest{
		Namespace: &namespacesapi.Namespace{Name: cmd.Args().First(), Labels: labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
	})
	return err
}
