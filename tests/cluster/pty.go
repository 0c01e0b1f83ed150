package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// underTerminal runs a command in a new terminal. It types standard input into the
// terminal and copies the output of the terminal to standard output. With -resize
// it changes the size of the terminal after the output contains the text of -after.
//
// It exits with the code of the command.
func underTerminal(args []string) error {
	flags := flag.NewFlagSet("pty", flag.ContinueOnError)
	size := flags.String("size", "24x80", "initial size, in rows and columns")
	resize := flags.String("resize", "", "second size")
	after := flags.String("after", "", "output text after which -resize applies")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("no command")
	}
	outside, inside, err := openTerminal()
	if err != nil {
		return err
	}
	defer outside.Close()
	if err := setSize(outside, *size); err != nil {
		return err
	}
	command := exec.Command(flags.Arg(0), flags.Args()[1:]...)
	command.Stdin, command.Stdout, command.Stderr = inside, inside, inside
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return err
	}
	inside.Close()
	// The end of the input is not typed: the terminal stays open, as a user's does.
	go io.Copy(outside, os.Stdin)

	var shown []byte
	waiting := *resize != ""
	buffer := make([]byte, 4096)
	for {
		n, err := outside.Read(buffer)
		os.Stdout.Write(buffer[:n])
		if waiting {
			shown = append(shown, buffer[:n]...)
			if bytes.Contains(shown, []byte(*after)) {
				waiting = false
				if err := setSize(outside, *resize); err != nil {
					return err
				}
			}
		}
		// The read fails with EIO when the command has closed the terminal.
		if err != nil {
			break
		}
	}
	err = command.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}

func setSize(terminal *os.File, size string) error {
	var rows, columns uint16
	if _, err := fmt.Sscanf(size, "%dx%d", &rows, &columns); err != nil {
		return fmt.Errorf("size %q: %w", size, err)
	}
	return resizeTerminal(terminal, rows, columns)
}
