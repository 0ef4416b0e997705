// Command porcupine checks whether histories of an onecopy store are linearizable.
//
//	history-checker [-timeout 60s] [-pictures DIR] FILE
//
// FILE is NDJSON as tests/support/history.py writes it: for each history a line {"history": name},
// then a line for each operation. For each history one line of JSON goes to standard output, in the
// same order (type verdict). The exit code is 0 whatever the verdicts are, and 1 if the file cannot
// be read as such.
//
// What is checked:
//   - Linearizability, by Porcupine, against the model in model.go: values, conditions, revisions.
//   - Revisions over the whole store: each names one write, and they rise in real time.
//   - Values: none is read, not even by stale reads, that no write can have left.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	timeout := flag.Duration("timeout", time.Minute, "time for each history")
	pictures := flag.String("pictures", "", "folder for pictures of what is not linearizable")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: history-checker [-timeout 60s] [-pictures DIR] FILE")
		os.Exit(1)
	}
	if err := run(flag.Arg(0), *timeout, *pictures); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string, timeout time.Duration, pictures string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	output := bufio.NewWriter(os.Stdout)
	defer output.Flush()
	answers := json.NewEncoder(output)
	return readHistories(file, func(h *history) error {
		return answers.Encode(check(h, timeout, pictures))
	})
}

// readHistories calls found for each history of an NDJSON stream.
func readHistories(stream io.Reader, found func(*history) error) error {
	decoder := json.NewDecoder(bufio.NewReaderSize(stream, 1<<20))
	var current *history
	for number := 1; ; number++ {
		var line record
		if err := decoder.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if line.History != nil {
			if current != nil {
				if err := found(current); err != nil {
					return err
				}
			}
			current = &history{name: *line.History}
			continue
		}
		if current == nil {
			return fmt.Errorf("line %d: an operation before the first {\"history\": name}", number)
		}
		if err := line.validate(); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		current.records = append(current.records, line)
	}
	if current == nil {
		return nil
	}
	return found(current)
}
