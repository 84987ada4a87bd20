// A PTX text as a list of instructions for each of its kernels. Every operand is a register: constants, addresses of
// parameters and of shared memory, and %tid.x and its like have registers of their own.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

enum class Flow { kNext, kBranch, kBarrier, kExit };

// `run` is what an opcode does to the lanes of a warp that are active; where it is null, nothing but `flow` happens.
struct Opcode {
  void (*run)(Warp&, const Instruction&);
  Flow flow = Flow::kNext;
  bool writes = true;  // its first operand is written
};

// From instructions.h; throws where there is no such opcode.
Opcode opcode_named(const std::string& name);

struct Operand {
  int reg;
  int64_t displacement = 0;  // of an address
};

struct Instruction {
  Opcode opcode;
  std::vector<int> to;
  std::vector<Operand> from;
  int predicate = -1;  // the register that says for which lanes, or for which not
  bool unless = false;
  int target = -1;  // of a branch
  std::string text;
  bool executed = false;
};

constexpr uint64_t kParameters = uint64_t{1} << 61;  // where parameters are
constexpr uint32_t kShared = 1024;                   // where shared memory begins: the system has the first KiB
constexpr const char* kSpecial[] = {"%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x"};

struct Parameter {
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::map<std::string, uint64_t> symbols;  // addresses of parameters and of shared variables
  uint32_t parameter_bytes = 0, shared_bytes = 0;
  unsigned most_threads = 1024;
  int registers = 0;
  std::map<uint64_t, int> constants;  // the register that has a value
  int special[std::size(kSpecial)];   // the registers of %tid.x …
  int launches = 0;
};

inline std::string stripped(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

inline uint32_t aligned(uint32_t at, uint32_t alignment) { return (at + alignment - 1) / alignment * alignment; }

// At commas outside of all brackets.
inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c == ',' && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) part = stripped(part);
  if (parts.back().empty()) parts.pop_back();
  return parts;
}

// ".align 8 .b8 name[40]", ".u64 name", ".extern .shared .align 128 .b8 name[]"
struct Variable {
  std::string name;
  uint32_t alignment = 0, bytes = 0;

  explicit Variable(const std::string& declaration) {
    std::istringstream words(declaration);
    uint32_t element = 1, count = 1;
    for (std::string word; words >> word;) {
      if (word == ".align") {
        words >> alignment;
      } else if (word[0] == '.' && word.size() > 2 && isdigit(word[2])) {  // .b8, .u64, .f32
        element = static_cast<uint32_t>(std::stoul(word.substr(2))) / 8;
      } else if (word[0] != '.') {
        name = word;
      }
    }
    if (const auto bracket = name.find('['); bracket != std::string::npos) {
      count = name[bracket + 1] == ']' ? 0 : static_cast<uint32_t>(std::stoul(name.substr(bracket + 1)));
      name = name.substr(0, bracket);
    }
    if (!alignment) alignment = element;
    bytes = element * count;
  }
};

class Parser {
 public:
  // Adds the kernels of a text.
  static void parse(const std::string& source, std::map<std::string, Kernel>& kernels) {
    std::string text;
    std::istringstream lines(source);
    for (std::string line; std::getline(lines, line);) text += line.substr(0, line.find("//")) + "\n";
    std::vector<Variable> dynamic;
    for (size_t at = text.find(".extern .shared"); at != std::string::npos; at = text.find(".extern .shared", at + 1)) {
      dynamic.emplace_back(text.substr(at, text.find(';', at) - at));
    }
    for (size_t at = text.find(".entry"); at != std::string::npos; at = text.find(".entry", at + 1)) {
      Kernel kernel = Parser(text, at, dynamic).kernel_;
      kernels[kernel.name] = std::move(kernel);
    }
  }

 private:
  Kernel kernel_;
  std::map<std::string, int> registers_;  // of "%rd<100>" where %rd0 is

  Parser(const std::string& text, size_t entry, const std::vector<Variable>& dynamic) {
    const size_t open = text.find('(', entry), close = text.find(')', open), brace = text.find('{', close);
    kernel_.name = stripped(text.substr(entry + 6, open - entry - 6));
    for (const std::string& declaration : split(text.substr(open + 1, close - open - 1))) {
      const Variable parameter(declaration);
      const uint32_t offset = aligned(kernel_.parameter_bytes, parameter.alignment);
      kernel_.parameters.push_back({offset, parameter.bytes});
      kernel_.symbols[parameter.name] = kParameters + offset;
      kernel_.parameter_bytes = offset + parameter.bytes;
    }
    const std::string directives = text.substr(close, brace - close);
    if (const auto most = directives.find(".maxntid"); most != std::string::npos) {
      kernel_.most_threads = static_cast<unsigned>(std::stoul(directives.substr(most + 8)));
    }
    for (int& reg : kernel_.special) reg = kernel_.registers++;

    std::vector<std::string> instructions;
    std::map<std::string, int> labels;
    for (const std::string& statement : statements(text, brace)) {
      if (statement.back() == ':') {
        labels[statement.substr(0, statement.size() - 1)] = static_cast<int>(instructions.size());
      } else if (statement[0] == '.') {
        declare(statement);
      } else {
        instructions.push_back(statement);
      }
    }
    for (const Variable& variable : dynamic) {  // behind what is static
      kernel_.shared_bytes = aligned(kernel_.shared_bytes, variable.alignment);
      kernel_.symbols[variable.name] = kShared + kernel_.shared_bytes;
    }
    for (const std::string& instruction : instructions) kernel_.code.push_back(decoded(instruction, labels));
  }

  // What stands between semicolons, and labels with their colon; braces that enclose statements are left out.
  static std::vector<std::string> statements(const std::string& text, size_t brace) {
    std::vector<std::string> found;
    std::string statement;
    int depth = 0;
    for (size_t at = brace;; ++at) {
      const char c = text[at];
      const bool begins = stripped(statement).empty();
      if (begins && (c == '{' || c == '}')) {
        depth += c == '{' ? 1 : -1;
        if (depth == 0) return found;
      } else if (c == ';') {
        if (!begins) found.push_back(stripped(statement));
        statement.clear();
      } else if (c == ':' && stripped(statement).find_first_of(" \t.") == std::string::npos) {
        found.push_back(stripped(statement) + ":");
        statement.clear();
      } else {
        statement += c;
      }
    }
  }

  void declare(const std::string& statement) {
    if (statement.starts_with(".reg")) {
      const auto names = statement.find_first_of("%abcdefghijklmnopqrstuvwxyz", statement.find_first_of(" \t", 6));
      for (const std::string& name : split(statement.substr(names))) {
        const auto angle = name.find('<');
        registers_[name.substr(0, angle)] = kernel_.registers;
        kernel_.registers += angle == std::string::npos ? 1 : std::stoi(name.substr(angle + 1));
      }
    } else if (statement.starts_with(".shared")) {
      const Variable variable(statement);
      kernel_.shared_bytes = aligned(kernel_.shared_bytes, variable.alignment);
      kernel_.symbols[variable.name] = kShared + kernel_.shared_bytes;
      kernel_.shared_bytes += variable.bytes;
    } else if (!statement.starts_with(".param") && !statement.starts_with(".pragma")) {  // a call's, a loop's
      throw std::runtime_error("not known: " + statement);
    }
  }

  int constant(uint64_t value) {
    const auto [at, is_new] = kernel_.constants.emplace(value, kernel_.registers);
    kernel_.registers += is_new;
    return at->second;
  }

  // A register, a special register, a number or a name.
  int register_of(const std::string& name) {
    for (size_t i = 0; i < std::size(kSpecial); ++i) {
      if (name == kSpecial[i]) return kernel_.special[i];
    }
    if (name[0] == '%') {
      const size_t digits = name.find_last_not_of("0123456789") + 1;
      const auto found = registers_.find(name.substr(0, digits));
      if (found == registers_.end()) throw std::runtime_error("no register " + name);
      return found->second + std::stoi(name.substr(digits));
    }
    if (name.starts_with("0f") || name.starts_with("0d")) return constant(std::stoull(name.substr(2), nullptr, 16));
    if (name[0] == '-') return constant(static_cast<uint64_t>(std::stoll(name, nullptr, 0)));
    if (isdigit(name[0])) return constant(std::stoull(name, nullptr, 0));
    const auto symbol = kernel_.symbols.find(name);
    return constant(symbol == kernel_.symbols.end() ? 0 : symbol->second);  // 0: the texts of assertions
  }

  // [%rd1+16], {%r1, %r2}, %r1
  std::vector<Operand> operands(const std::string& text) {
    if (text[0] == '[') {
      const auto plus = text.find('+');
      const auto name = stripped(text.substr(1, std::min(plus, text.size() - 1) - 1));
      return {{register_of(name), plus == std::string::npos ? 0 : std::stoll(text.substr(plus + 1))}};
    }
    std::vector<Operand> found;
    for (const auto& name : text[0] == '{' ? split(text.substr(1, text.size() - 2)) : std::vector{text}) {
      found.push_back({register_of(name)});
    }
    return found;
  }

  Instruction decoded(const std::string& statement, const std::map<std::string, int>& labels) {
    Instruction instruction;
    instruction.text = statement;
    std::string rest = statement;
    if (rest[0] == '@') {
      const auto space = rest.find_first_of(" \t");
      instruction.unless = rest[1] == '!';
      instruction.predicate = register_of(rest.substr(1 + instruction.unless, space - 1 - instruction.unless));
      rest = stripped(rest.substr(space));
    }
    const auto space = rest.find_first_of(" \t\n");
    const std::string name = rest.substr(0, space);
    instruction.opcode = opcode_named(name);
    if (name.starts_with("call") || name.starts_with("st.param") || space == std::string::npos) return instruction;
    rest = stripped(rest.substr(space));
    if (instruction.opcode.flow == Flow::kBranch) {
      instruction.target = labels.at(rest);
      return instruction;
    }
    bool first = instruction.opcode.writes;
    for (const std::string& part : split(rest)) {
      for (const Operand& operand : operands(part)) {
        if (first) instruction.to.push_back(operand.reg);
        if (!first) instruction.from.push_back(operand);
      }
      first = false;
    }
    return instruction;
  }
};

}  // namespace ptx
