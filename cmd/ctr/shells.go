package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// completionCommand prints scripts for shells. They ask the hidden command
// __complete with the words of the line so far.
func completionCommand() *cli.Command {
	script := func(shell, text string) *cli.Command {
		return &cli.Command{Name: shell, Usage: "Print the completion script for " + shell, Action: func(context.Context, *cli.Command) error {
			fmt.Print(text)
			return nil
		}}
	}
	return &cli.Command{
		Name: "completion", Usage: "Print a shell completion script",
		Description: "Completes commands, flags, and what the daemon has: images, containers, tasks, snapshots and so on. 'make install' puts the scripts where the shells find them.",
		Commands:    []*cli.Command{script("bash", bashScript), script("zsh", zshScript), script("fish", fishScript)},
	}
}

// Readline replaces only what follows the last word break of the word, and an
// image's name has colons: what comes before is taken off each candidate.
const bashScript = `# bash completion for ctr
_ctr() {
	local line=${COMP_LINE:0:COMP_POINT} IFS=$' \t\n' word cur keep
	local -a words
	read -r -a words <<<"$line"
	[[ $line == *[[:space:]] ]] && words+=("")
	cur=${words[${#words[@]}-1]}
	keep=${cur%"${cur##*[:=]}"}
	[[ $COMP_WORDBREAKS == *:* ]] || keep=${cur%"${cur##*=}"}
	COMPREPLY=()
	while IFS=$'\t' read -r word _; do
		COMPREPLY+=("${word#"$keep"}")
	done < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
	[[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:/] ]] && compopt -o nospace 2>/dev/null
	return 0
}
complete -o default -F _ctr ctr
`

const zshScript = `#compdef ctr
_ctr() {
	local -a described
	local line
	for line in "${(@f)$("${words[1]}" __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
		[[ -z $line ]] && continue
		if [[ $line == *$'\t'* ]]; then
			described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
		else
			described+=("${line//:/\\:}")
		fi
	done
	if (( $#described )); then
		_describe -V ctr described
	else
		_files
	fi
}
if [[ ${funcstack[1]} == _ctr ]]; then
	_ctr "$@"
else
	compdef _ctr ctr
fi
`

const fishScript = `# fish completion for ctr
function __ctr_complete
	set -l words (commandline -opc) (commandline -ct)
	$words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c ctr -f -a '(__ctr_complete)'
complete -c ctr -n 'not __ctr_complete | string length -q' -F
`
