package batch

import (
	"fmt"
	"strings"
)

// The errors below are what may be wrong with a parameter, in the words of contract §13.2. param
// is its name, or the path to it.

// Missing is the error for a parameter that is required and absent.
func Missing(param string) error {
	return &Error{
		Kind: Invalid, Code: "missing_required_parameter", Param: param,
		Msg: fmt.Sprintf("Missing required parameter: '%s'.", param),
	}
}

// WrongType is the error for a parameter with another type than want, such as "a string". got is
// the JSON value that came instead; its first byte is enough.
func WrongType(param, want string, got []byte) error {
	e := wrongType(param, want, got)
	return &Error{Kind: Invalid, Code: e.Code, Param: e.Param, Msg: e.Message}
}

// InvalidValue is the error for a parameter that is none of the supported values.
func InvalidValue(param, got string, supported ...string) error {
	quoted := make([]string, len(supported))
	for i, s := range supported {
		quoted[i] = "'" + s + "'"
	}
	switch n := len(quoted); n {
	case 1:
		return invalidValue(param, got, "Value must be "+quoted[0])
	case 2:
		return invalidValue(param, got, "Supported values are: "+quoted[0]+" and "+quoted[1])
	default:
		return invalidValue(param, got, "Supported values are: "+strings.Join(quoted[:n-1], ", ")+", and "+quoted[n-1])
	}
}

func invalidValue(param, got, rule string) error {
	return &Error{
		Kind: Invalid, Code: "invalid_value", Param: param,
		Msg: fmt.Sprintf("Invalid value: '%s'. %s.", shorten(got), rule),
	}
}

// CheckRange returns an error if the parameter's value n is not between least and most.
func CheckRange(param string, n, least, most int64) error {
	switch {
	case n < least:
		return &Error{
			Kind: Invalid, Code: "integer_below_min_value", Param: param,
			Msg: fmt.Sprintf("Invalid '%s': integer below minimum value. Expected a value >= %d, but got %d instead.", param, least, n),
		}
	case n > most:
		return &Error{
			Kind: Invalid, Code: "integer_above_max_value", Param: param,
			Msg: fmt.Sprintf("Invalid '%s': integer above maximum value. Expected a value <= %d, but got %d instead.", param, most, n),
		}
	}
	return nil
}

// TooLong is the error for a parameter of got characters where most are allowed.
func TooLong(param string, most, got int) error {
	return &Error{
		Kind: Invalid, Code: "string_above_max_length", Param: param,
		Msg: fmt.Sprintf("Invalid '%s': string too long. Expected a string with maximum length %d, but got a string with length %d instead.", param, most, got),
	}
}
