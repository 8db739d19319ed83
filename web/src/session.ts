// The token and the operator's name: kept by this tab for as long as it is open, and nowhere else.

const TOKEN = "tollgate.token";
const OPERATOR = "tollgate.operator";

function read(key: string): string {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    // Storage that is switched off: then they live as long as the page.
    return "";
  }
}

function write(key: string, value: string): void {
  try {
    if (value) sessionStorage.setItem(key, value);
    else sessionStorage.removeItem(key);
  } catch {
    // As above.
  }
}

let currentToken = read(TOKEN);
let currentOperator = read(OPERATOR);

export const session = {
  get token(): string {
    return currentToken;
  },
  get operator(): string {
    return currentOperator;
  },
  signIn(token: string, operator: string): void {
    currentToken = token;
    write(TOKEN, token);
    session.setOperator(operator);
  },
  setOperator(operator: string): void {
    currentOperator = operator;
    write(OPERATOR, operator);
  },
  signOut(): void {
    currentToken = "";
    write(TOKEN, "");
  },
};
