package upstream

import (
	"strings"
	"testing"
)

// inStandard reports whether t is one of the tests that TestStandard runs again.
func inStandard(t testing.TB) bool { return strings.HasPrefix(t.Name(), "TestStandard/") }

// TestStandard has net/http carry the calls of plain http upstreams, too, and keep every promise that
// the lean wire keeps in the other tests.
func TestStandard(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Classes", TestClasses},
		{"RequestOnTheWire", TestRequestOnTheWire},
		{"NoKeyNoAuthorization", TestNoKeyNoAuthorization},
		{"AnswersAreBytes", TestAnswersAreBytes},
		{"Endpoints", TestEndpoints},
		{"CallerChangesEndpoint", TestCallerChangesEndpoint},
		{"RequestID", TestRequestID},
		{"AnswerSizes", TestAnswerSizes},
		{"LargeErrorPage", TestLargeErrorPage},
		{"LargestAnswer", TestLargestAnswer},
		{"LargeAnswersAtOnce", TestLargeAnswersAtOnce},
		{"ConnectionIsReused", TestConnectionIsReused},
		{"KeyStaysOurs", TestKeyStaysOurs},
		{"HostileAnswers", TestHostileAnswers},
		{"AliasedBodies", TestAliasedBodies},
		{"ConnectionFailures", TestConnectionFailures},
		{"Aborted", TestAborted},
		{"CallerAfterFailures", TestCallerAfterFailures},
		{"NeverSentTwice", TestNeverSentTwice},
		{"ClosedIdleConnections", TestClosedIdleConnections},
		{"GoneAfterReuse", TestGoneAfterReuse},
		{"EndlessAnswer", TestEndlessAnswer},
		{"EarlyAnswer", TestEarlyAnswer},
		{"Timeouts", TestTimeouts},
		{"AbortBeforeTimeout", TestAbortBeforeTimeout},
		{"ConnectTimeout", TestConnectTimeout},
	} {
		t.Run(c.name, c.test)
	}
}
