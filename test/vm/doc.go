// Package vm holds the tests that need a machine of their own: the power is cut, and
// control groups are of version 2 alone. They run when BERTH_VM names a program that
// runs commands in a throw-away virtual machine, and skip otherwise:
//
//	$BERTH_VM disk FILE SIZE                        makes an image with an ext4 file system
//	$BERTH_VM run [OPTION...] -- COMMAND...         runs a command as root, with its output and status
//	$BERTH_VM cut [OPTION...] -- COMMAND...         the same, and cuts the power: 0 when it was cut,
//	                                                1 when the command ended before
//
// with the options --disk FILE (mounted at /data), --share HOSTDIR:GUESTDIR[:ro],
// --env NAME=VALUE, --mem MB, --timeout SECONDS and, for cut, --on-line REGEX, --after
// SECONDS after that line, and --unflushed drop|random:SEED|keep, which says what
// becomes of writes that were not flushed. The guest sees the host's files read-only,
// with /tmp and /run empty, and version 2 of control groups with all controllers.
//
// The test binary is also what runs in the guest: see guest_test.go. The machine may
// be emulated and slow: BERTH_VM_CUTS says how often to cut (default 5).
package vm
