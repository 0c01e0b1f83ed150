package main

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

const (
	// chattyInterval is the time between two lines of the chatty pod.
	chattyInterval = 100 * time.Millisecond
	// quietGap is longer than the 15 s after which many proxies abort a response.
	quietGap = 25 * time.Second
	// shellLogLines is the number of lines in the log of the shell pod.
	shellLogLines = 1000
)

// containerLogs writes the log of a pod and flushes each line.
func (k *kubelet) containerLogs(w http.ResponseWriter, r *http.Request) {
	if !knownPod(w, r) {
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	response := http.NewResponseController(w)
	// A failed write ends the context of the request, and every wait checks the context.
	line := func(format string, args ...any) {
		fmt.Fprintf(w, format+"\n", args...)
		_ = response.Flush()
	}
	wait := func(d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-r.Context().Done():
			return false
		}
	}
	follow := r.URL.Query().Get("follow") == "true"

	switch r.PathValue("pod") {
	case chattyPod:
		// Each line has its number and the time of writing, in nanoseconds since
		// 1970, so that a reader on this machine can calculate its age.
		for i := 0; follow || i < 10; i++ {
			line("%d %d", i, time.Now().UnixNano())
			if follow && !wait(chattyInterval) {
				return
			}
		}
	case quietPod:
		line("before the silence")
		if follow && wait(quietGap) {
			line("after the silence")
		}
	default:
		first := 0
		if tail, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil {
			first = max(0, shellLogLines-tail)
		}
		for i := first; i < shellLogLines; i++ {
			fmt.Fprintf(w, "line %d\n", i)
		}
	}
}
