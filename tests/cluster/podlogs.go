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
	// quietGap is longer than the 15 s after which many proxies cut a response.
	quietGap = 25 * time.Second
	// shellLogLines is how many lines the log of the shell pod has.
	shellLogLines = 1000
)

// containerLogs writes a pod's log. Each line leaves at once.
func (k *kubelet) containerLogs(w http.ResponseWriter, r *http.Request) {
	if !knownPod(w, r) {
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	response := http.NewResponseController(w)
	// A failed write shows in the request's context, which every wait looks at.
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
		// Each line is its number and the time it was written, in nanoseconds
		// since 1970, so that a reader on this machine can tell its age.
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
