package config

import "iter"

// didYouMean names the known word nearest to one that is not known, as the end
// of a message; empty when none is near.
func didYouMean(word string, known iter.Seq[string]) string {
	best, distance := "", min(len(word)/3+1, 4)
	for k := range known {
		if d := editDistance(word, k); d < distance || d == distance && best != "" && k < best {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + keyName([]string{best}) + "?"
}

// editDistance is how many insertions, deletions, replacements and swaps of
// neighbours make b of a.
func editDistance(a, b string) int {
	if len(a) > 200 || len(b) > 200 {
		return max(len(a), len(b)) // nobody mistyped that
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
