package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth/cmd/ctr/output"

	"github.com/urfave/cli/v3"
)

func fsckCommand() *cli.Command {
	return &cli.Command{
		Name: "fsck", Usage: "Check that what is stored is whole, and repair it", ArgsUsage: "[flags]",
		Description: "Hashes every blob, follows every image to its layers, compares unpacked files with their layers, and looks for what containers, snapshots and " +
			"leases refer to, in all namespaces (with -n in that one). --repair fetches blobs again from where they came, unpacks layers again that no container " +
			"uses, and drops downloads that nobody goes on with.\n\n" +
			"Without a daemon, blobs, documents and directories are checked where they are, and nothing is changed. Exit status 1 means that something is damaged.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "Mend what can be fetched again or made anew"},
			&cli.BoolFlag{Name: "skip-files", Usage: "Do not compare unpacked files with their layers, which reads every layer"},
			&cli.BoolFlag{Name: "offline", Usage: "Check the files on the disk without asking a daemon"},
			&cli.StringFlag{Name: "root", Usage: "Where the daemon keeps its data, for --offline", Value: "/var/lib/containerd"},
			formatFlag(),
		}, registryFlags()...),
		Action: undoing(fsckAction),
	}
}

// finding is something that is not as it should be.
type finding struct {
	Severity  string // "damaged", or "note" for what does no harm
	Kind      string // blob, image, snapshot, container, lease, download, database, directory
	Namespace string
	Name      string
	Problem   string
	Repair    string // what was done, or what to do

	mend func(ctx context.Context) (done string, err error) // nil when nothing can be done
}

const (
	damaged = "damaged"
	noted   = "note"
)

// checker collects findings and shows how far it is.
type checker struct {
	findings []*finding
	status   *output.Status
}

func (c *checker) add(f finding) *finding {
	c.findings = append(c.findings, &f)
	return &f
}

func fsckAction(ctx context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	c := &checker{status: output.NewStatus()}
	err := c.run(ctx, cmd)
	c.status.Clear()
	if err != nil {
		return err
	}
	if err := c.report(cmd.String("format")); err != nil {
		return err
	}
	left := 0
	for _, f := range c.findings {
		if f.Severity == damaged {
			left++
		}
	}
	if left > 0 {
		what := "things are"
		if left == 1 {
			what = "thing is"
		}
		return fmt.Errorf("%d %s damaged", left, what)
	}
	return nil
}

// run checks through the daemon, or without it when it is not there.
func (c *checker) run(ctx context.Context, cmd *cli.Command) error {
	if cmd.Bool("offline") {
		if cmd.Bool("repair") {
			return invalid("--repair needs the daemon: start it and leave --offline out")
		}
		return c.offline(ctx, cmd.String("root"))
	}
	inSession, s, end, err := connect(ctx, cmd)
	if err != nil {
		if cmd.Bool("repair") || cmd.IsSet("address") && !cmd.IsSet("root") {
			return fmt.Errorf("%w; 'ctr fsck --offline --root DIR' checks without a daemon", err)
		}
		output.Warn("%v; checking %s without it", err, cmd.String("root"))
		return c.offline(ctx, cmd.String("root"))
	}
	defer end()
	ctx = inSession
	namespaces := []string{s.namespace}
	if !cmd.IsSet("namespace") {
		namespaces = namespaceNames(ctx, s)
	}
	st := &store{checker: c, cmd: cmd, s: s, blobs: map[string]*storedBlob{}, files: !cmd.Bool("skip-files")}
	defer st.close(ctx)
	for _, name := range namespaces {
		if err := st.gather(ctx, name); err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	if err := st.check(ctx); err != nil {
		return err
	}
	if !cmd.Bool("repair") {
		for _, f := range c.findings {
			if f.mend != nil && f.Repair == "" {
				f.Repair = "ctr fsck --repair mends it"
			}
		}
		return nil
	}
	return c.repair(ctx)
}

// repair mends what it can, in the order in which it was found: blobs first.
func (c *checker) repair(ctx context.Context) error {
	for _, f := range c.findings {
		if f.mend == nil {
			continue
		}
		c.status.At("repairing %s %s", f.Kind, f.Name)
		done, err := f.mend(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			f.Repair = "cannot be repaired: " + output.Message(err.Error())
			continue
		}
		f.Severity, f.Repair = "repaired", done
	}
	return nil
}

func (c *checker) report(format string) error {
	order := []string{damaged, "repaired", noted}
	slices.SortStableFunc(c.findings, func(a, b *finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	if format != "" && format != "table" {
		return output.List(format, c.findings, output.Narrow, "", nil)
	}
	if len(c.findings) == 0 {
		output.Line("everything is whole")
		return nil
	}
	for _, f := range c.findings {
		where := f.Name
		if f.Namespace != "" {
			where = f.Namespace + "/" + f.Name
		}
		output.Line("%s: %s %s: %s", strings.ToUpper(f.Severity), f.Kind, where, f.Problem)
		if f.Repair != "" {
			output.Line("    %s", f.Repair)
		}
	}
	return nil
}
